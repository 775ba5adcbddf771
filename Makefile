# `make bench` and `make test` do all the set-up on a fresh machine: environment, build, run.
#   TORCH   which torch to install, "torch==2.13.0" for instance; the newest if not given
#   VENV    where the environment goes, or stands; `make ... VENV=` takes the python that is active, as it is
#   ARGS    more arguments for the benchmark or for pytest
PYTHON ?= python3
TORCH ?= torch
VENV ?= .venv
ARGS ?=
ifneq ($(VENV),)
BIN := $(abspath $(VENV))/bin
RUN := PATH="$(BIN):$$PATH"
READY := $(VENV)/.ready
endif

.PHONY: bench test emu coverage gpu-bench gpu-test gpu-develop lint format develop wheel docs clean

bench: develop
	$(RUN) python3 -m benchmarks $(ARGS)

test: develop lint
	$(RUN) OMP_WAIT_POLICY=passive python3 -m pytest $(PARALLEL) $(ARGS)

# The CUDA kernels without a GPU: emulated under sanitizers, in every schedule, through the whole suite; the code that
# nvcc makes of them.
emu: develop
	$(RUN) python3 -m pytest tests/emu tests/static $(ARGS)

# Which lines of the Python package have run, to look at, in one process: minutes. With
# CMAKE_ARGS=-DNORMEXT_COVERAGE=ON also which of the bindings, in a build of its own, which is the tree's until
# the next `make develop`.
coverage: develop
	$(RUN) pip install --quiet coverage
	find build -name '*.gcda' -delete
	-$(RUN) python3 -m coverage run --source normext -m pytest -q $(addprefix --ignore tests/,cpp emu static) $(ARGS)
	$(RUN) python3 -m coverage report --skip-covered --show-missing
	$(RUN) python3 tests/line_counts.py build csrc/bindings

# On a machine with an NVIDIA GPU: the same, built for that GPU, which fails where it cannot be.
gpu-bench: gpu-develop
	$(RUN) python3 -m benchmarks --device cuda $(ARGS)

gpu-test: gpu-develop
	$(RUN) OMP_NUM_THREADS=2 python3 -m pytest -n 8 $(ARGS)
	if command -v compute-sanitizer >/dev/null; then for tool in memcheck racecheck; do \
	  $(RUN) PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --kernel-name kns=normext \
	  --report-api-errors no --error-exitcode 1 python3 -m pytest -q tests/test_cuda.py -k every_schedule || exit 1; \
	done; fi

# Whole files go to the processes, the first of them first: those that take longest. Threads that wait leave the cores
# to the other processes.
PARALLEL = -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

gpu-develop: export FORCE_CUDA = 1
gpu-develop: $(READY)
	$(RUN) python3 -c "import torch; torch.cuda.get_device_capability()"  # no GPU is an error, before all the work
	$(MAKE) develop

# An editable build: Python files as they are in the tree, the extension rebuilt from what changed. It is built first,
# where the compilers' progress is seen: pip shows none. (PYTHONWARNINGS: setuptools has advice on editable installs.)
develop: $(READY)
	$(RUN) python3 setup.py --quiet build_ext --inplace
	$(RUN) PYTHONWARNINGS=ignore python3 -m pip install --quiet --no-build-isolation --no-deps --editable .

ifneq ($(VENV),)
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade pip
	$(RUN) python3 -c "import torch" 2>/dev/null || $(RUN) pip install --quiet "$(TORCH)"
	$(RUN) pip install --quiet --group dev
	touch $@
endif

lint: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
	$(RUN) mypy

format: $(READY)
	$(RUN) ruff check --fix .
	$(RUN) ruff format .
	$(RUN) clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# For machines with the same Python and torch, from the build in build/; what it needs there is said at the end.
wheel: $(READY)
	$(RUN) pip install --quiet auditwheel
	$(RUN) python3 -m build --no-isolation --sdist --wheel
	$(RUN) python3 -m building.wheel dist/*.whl

# The site of docs/, in build/site. It is made of sources: nothing is built or imported for it.
docs: $(READY)
	$(RUN) pip install --quiet --group docs
	$(RUN) NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict

clean:
	rm -rf build dist *.egg-info normext/*.so $(VENV)
