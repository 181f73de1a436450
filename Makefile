# Each target sets up what it needs by itself: Python 3.10+, make and pip are enough. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
# Test processes at a time. One test process uses one thread (conftest.py).
WORKERS ?= 2
# More arguments for pytest, such as ARGS="-k loss" (the results then say nothing about parity).
ARGS ?=
# Where to write the wheel.
DIST ?= dist

BIN := $(VENV)/bin
RESULTS := build/test-results.json
# What the results of a test run depend on.
INPUTS := src tests tools examples templates docs conftest.py pyproject.toml constraints.txt

# pip reads these: everything that it installs, and everything that it needs to build a wheel, comes in the pinned version.
export PIP_CONSTRAINT := $(abspath constraints.txt)
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format parity parity-check results api bench docs wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{ printf "make %-14s %s\n", $$1, $$2 }'

demo: $(VENV)/.demo ## train a classifier on real data (scikit-learn's digits)
	$(BIN)/task fit --config examples/digits/digits.yaml

test: $(VENV)/.dev ## run every test: the package, the examples and the code blocks of the documentation
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile $(if $(ARGS),$(ARGS),--parity-results=$(RESULTS))

lint: $(VENV)/.dev ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.dev ## apply what lint would ask for, where that is mechanical
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

parity: results ## write docs/parity.md from the last full test run (runs the tests when something has changed since)
	$(BIN)/python tools/parity.py render

parity-check: results ## fail when docs/parity.md is not what the tests give
	$(BIN)/python tools/parity.py check

# A failing test holds no row and does not stop the page: it is made from those that pass.
results: $(VENV)/.dev
	@if [ ! -e $(RESULTS) ] || find $(INPUTS) -newer $(RESULTS) -type f ! -path '*/__pycache__/*' ! -path docs/parity.md \
	    ! -path 'docs/_build/*' 2>/dev/null | grep -q .; then $(MAKE) test ARGS= || true; fi

api: $(VENV)/.dev ## write tests/public_api.txt, the snapshot of the public names
	$(BIN)/python tools/public_api.py

bench: $(VENV)/.dev ## measure step overhead, start-up and memory against the bare loop
	$(BIN)/python -m benchmarks

docs: $(VENV)/.dev ## build the documentation into docs/_build
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q docs docs/_build

wheel: $(VENV)/.dev ## build the source distribution, and the wheel from it
	$(BIN)/python -m build --outdir $(DIST)

clean: ## remove everything that these targets made
	rm -rf $(VENV) build dist docs/_build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The two environments are one folder: .demo is enough to train, .dev adds what tests, checks and documentation need.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing taskloom and what its examples need into $(VENV) (once)'
	@$(BIN)/pip install --quiet --editable '.[examples]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing taskloom and what its tests need into $(VENV) (once)'
	@$(BIN)/pip install --quiet --editable '.[tensorboard,templates,completion,examples,s3,docs,test,dev]'
	@touch $@ $(VENV)/.demo
