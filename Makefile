# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench soak chaos browser clean

help:  ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## Install Loom and its tools into .venv (every other target does so itself)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Loom needs Python 3.11 or newer: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@echo "Setting up .venv, once; this takes a minute or so"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)  ## Count the identifiers of Python's standard library on this machine
	@$(BIN)/python examples/identifiers.py --report build/identifiers.html

test: $(READY)  ## Run all tests
	$(BIN)/python -m pytest

lint: $(READY)  ## Check style, types and import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo

bench: $(READY)  ## Measure
	$(BIN)/python -m benchmarks

soak: $(READY)  ## Run the long tests that `make test` leaves out
	$(BIN)/python -m pytest -m soak || test $$? -eq 5  # 5: there are none

chaos: $(READY)  ## Break real processes in some twenty ways, and count what was lost (some ten minutes)
	$(BIN)/python -m tests.chaos --seeds 1-20

browser: $(READY)  ## Test reports in a browser (Chromium has to be there)
	@command -v chromium >/dev/null || { echo "There is no chromium here: apt install chromium"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,browser]'
	$(BIN)/python -m pytest -m browser tests/browser

clean:  ## Remove caches and build products (.venv stays)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
