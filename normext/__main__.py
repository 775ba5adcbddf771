"""``python -m normext`` prints what is installed."""

from normext import show_config

show_config()
