# Evergreen from a checkout. It takes Python 3.11 or newer and make; everything else goes into .venv.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?=
BIN := .venv/bin
BENCHMARKS := $(sort $(wildcard benchmarks/[a-z]*.py))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Hundreds of processes import the checkout; without bytecode each would compile it.
unexport PYTHONDONTWRITEBYTECODE

define CONSTRAINTS_HEADER
# The tested version of every package, development tools included, for `pip install -c`. Made by `make constraints`:
# it installs what pyproject.toml asks for in a fresh environment and lists what came.
endef
export CONSTRAINTS_HEADER

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup retrain test lint bench constraints clean check-python

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: .venv/.setup ## Make .venv with the evergreen command
	@echo "Ready: $(BIN)/evergreen --help"

retrain: .venv/.setup demo/evergreen.toml ## Train, judge and ship a model of made-up loans
	@$(BIN)/evergreen retrain demo/evergreen.toml

test: .venv/.setup-dev ## Run the tests (PYTEST_ARGS=..., EVERGREEN_TEST_REQUIRE=all)
ifeq ($(PYTEST_ARGS),)
	@$(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile tests/unit
	@$(BIN)/python -m pytest --quiet --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10 \
		tests/integration tests/e2e
else
	@$(BIN)/python -m pytest $(PYTEST_ARGS)
endif

lint: .venv/.setup-dev ## Check style, types, layers and the examples in docstrings
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m pytest --quiet --doctest-modules flows tasks infra

bench: .venv/.setup-dev ## Run the benchmarks and write docs/performance.md (BENCH_ARGS=--quick: build/performance.md)
	@mkdir -p build
	@rm -f build/benchmarks.jsonl
	@set -e; for script in $(BENCHMARKS); do \
		$(BIN)/python "$$script" $(BENCH_ARGS) > build/benchmark.out; \
		tail -n 1 build/benchmark.out | tee -a build/benchmarks.jsonl; \
	done
	@$(BIN)/python benchmarks/_performance.py build/benchmarks.jsonl $(if $(BENCH_ARGS),build,docs)/performance.md

constraints: check-python ## Renew constraints.txt from a fresh environment
	@set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/pip" install --quiet --editable '.[dev,s3]'; \
	"$$folder/venv/bin/pip" freeze --exclude-editable > "$$folder/frozen"; \
	{ printf '%s\n' "$$CONSTRAINTS_HEADER"; sed 's/+cpu$$//' "$$folder/frozen" | LC_ALL=C sort -f; } > "$$folder/new"; \
	cat "$$folder/new" > constraints.txt

clean: ## Remove what the other targets made, the demo and its models included
	@rm -rf .venv build dist demo .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache ./*.egg-info
	@find flows tasks infra tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Evergreen needs \
	Python 3.11 or newer, but got PYTHON=$(PYTHON) ($$($(PYTHON) --version 2>&1 | tail -n 1)). \
	Name another: make setup PYTHON=python3.12." >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "Evergreen needs Python's venv module, but got \
	PYTHON=$(PYTHON) without it. Install it (Debian: python3-venv)." >&2; exit 2; }

# An existing .venv keeps its Python; `make clean` makes room for another one.
.venv/.setup: pyproject.toml constraints.txt
	@echo "Installing into .venv: a few minutes the first time."
	@test -x $(BIN)/pip || { $(MAKE) --no-print-directory check-python && $(PYTHON) -m venv .venv; }
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/.setup-dev: pyproject.toml constraints.txt
	@echo "Installing into .venv with the development tools: a few minutes the first time."
	@test -x $(BIN)/pip || { $(MAKE) --no-print-directory check-python && $(PYTHON) -m venv .venv; }
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch .venv/.setup $@

demo/evergreen.toml: | .venv/.setup
	@$(BIN)/evergreen demo demo
