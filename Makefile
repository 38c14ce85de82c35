# Needs Python 3.11 or newer and make. The first target that runs sets up .venv from constraints.txt.
PROMPT ?= a large striped red circle left of a small blue star, on a yellow background
SEED ?= 1
OUT ?= out
export PROMPT

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
SOURCES := benchmarks docs examples integrations scripts src tests
# Neighbors share what their files set up, so each process takes a stretch of the tests, and then some of the slower ones'.
# Compiled modules are kept, for the processes that tests start and for the next run.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --quiet --numprocesses logical --maxprocesses 8 --dist worksteal

.PHONY: help generate test coverage test-long docs results lint types format clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

generate: .venv/.installed  ## Draw PROMPT="..." (SEED, OUT) with the bundled model
	@$(BIN)/cogview3 generate "$$PROMPT" --seed $(SEED) --out "$(OUT)"

test: .venv/.installed-dev  ## Run the unit tests
	$(PYTEST)

coverage: .venv/.installed-dev  ## Run the unit tests with branch coverage, in well over half as much time again
	$(PYTEST) --cov --cov-report=term

test-long: .venv/.installed-dev  ## Run every test, the slow ones and those for a GPU included
	$(BIN)/python -m pytest --quiet -m ""

docs: .venv/.installed-docs  ## Build the documentation into site/, API pages from the docstrings included
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

results: .venv/.installed-dev  ## Measure docs/results.md again: half an hour, or with TRAIN=--train two; resumes where it stopped
	$(BIN)/cogview3 reproduce $(TRAIN) --out build/results
	$(BIN)/python scripts/results.py build/results

lint: .venv/.installed-dev types  ## Check style, formatting and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: .venv/.installed-dev  ## Check types: no errors where strict, elsewhere no more than before; those that users see by pyright, too
	$(BIN)/python scripts/check_types.py
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: .venv/.installed-dev  ## Apply formatting and the fixes that are safe
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:  ## Remove the environment and what tests leave behind
	rm -rf .venv build site .pytest_cache .ruff_cache .coverage

# torch comes first and alone, so that the build chosen for this machine (CPU or CUDA) is the one that stays.
.venv/.installed: pyproject.toml constraints.txt
	@for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	test -n "$$found" || { echo "error: Python 3.11 or newer is needed; none found as python3 or python3.1x"; exit 1; }; \
	test -x $(BIN)/python || $$found -m venv .venv
	@echo "Installing into .venv (a few minutes, once)"
	@$(PIP) torch
	@$(PIP) --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(PIP) --editable ".[dev]"
	@touch $@

.venv/.installed-docs: .venv/.installed
	@$(PIP) --editable ".[docs]"
	@touch $@
