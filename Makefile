# `make bench` and `make test` do all the set-up on a fresh machine: environment, build, run.
#   TORCH   which torch to install, "torch==2.13.0" for instance; the newest if not given
#   VENV    where the environment goes; set VENV= to an environment of your own to use it as it is
#   ARGS    more arguments for the benchmark or for pytest
PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
ARGS ?=
BIN := $(abspath $(VENV))/bin
RUN := PATH="$(BIN):$$PATH"

.PHONY: bench test lint format develop wheel clean

bench: develop
	$(RUN) python -m benchmarks $(ARGS)

test: develop lint
	$(RUN) python -m pytest $(ARGS)

# An editable build: Python files as they are in the tree, the extension rebuilt from what changed.
develop: $(VENV)/.ready
	$(RUN) pip install --quiet --no-build-isolation --no-deps --editable .

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	$(RUN) python -c "import torch" 2>/dev/null || $(RUN) pip install --quiet "$(TORCH)"
	$(RUN) pip install --quiet --group dev
	touch $@

lint: $(VENV)/.ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(RUN) mypy

format: $(VENV)/.ready
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(RUN) clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

wheel: $(VENV)/.ready
	$(RUN) python -m build --no-isolation

clean:
	rm -rf build dist *.egg-info normext/*.so $(VENV)
