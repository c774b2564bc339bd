# `make help` lists what there is to make.

VENV ?= .venv
PYTHON ?= python3
# Extra arguments for pip, such as an index that serves another build of torch.
PIP_ARGS ?=
# Extra arguments for the capture: make capture ARGS="--steps 20 --nproc 4"
ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help setup capture test check gold benchmarks

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(INSTALLED) ## make the virtual environment in .venv

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "$(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

capture: $(INSTALLED) ## capture 50 steps of the trainer; more arguments in ARGS
	$(BIN)/python -m speedprof capture --steps 50 $(ARGS)

test: check ## all checks and the whole quick test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(INSTALLED) ## lint, format, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

gold: $(INSTALLED) ## capture the sample that this machine can make anew, and rewrite the reports of all samples
	$(BIN)/python -m tests.gold.remake

benchmarks: $(INSTALLED) ## run every benchmark that needs no GPU
	$(BIN)/python -m benchmarks.annotation_cost
	$(BIN)/python -m benchmarks.trace_reading
