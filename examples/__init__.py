"""BatchNorm or LayerNorm? Small programs for what tutorials say of them: README.md says what each shows."""
