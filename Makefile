# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
COMPILED := build/compiled
ENGINES := slurm-wlm munge openssh-server openssh-client iproute2

.DEFAULT_GOAL := help
.PHONY: help setup demo test engines lint compiled bench bench-smoke soak chaos fuzz browser clean

help:  ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## Install Loom and its tools into .venv (every other target does so itself)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Loom needs Python 3.11 or newer: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	@echo "Setting up .venv, once; this takes a minute or so"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY)  ## Count the identifiers of Python's standard library on this machine
	@$(BIN)/python examples/identifiers.py --report build/identifiers.html

test: $(READY) $(COMPILED)/.done  ## Run all tests, and those of the cores once more with the cores compiled
	$(BIN)/python tools/run_tests.py $(COMPILED)

compiled: $(COMPILED)/.done  ## Make a copy of the package with compiled cores: PYTHONPATH=build/compiled uses it

$(COMPILED)/.done: $(READY) tools/compile_cores.py $(shell find src/loom -name '*.py')
	@if command -v cc >/dev/null; then echo "Compiling the cores, a minute or so"; $(BIN)/python tools/compile_cores.py $(COMPILED); \
	else echo "There is no C compiler here: the cores stay interpreted"; mkdir -p $(COMPILED); fi
	@touch $@

engines:  ## Install what the tests of Slurm, ssh and several hosts need (Debian packages; as root)
	@test "$$(id -u)" = 0 || { echo "Only root can install them: $(ENGINES)"; exit 1; }
	apt-get update -qq
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --no-install-recommends $(ENGINES)

lint: $(READY)  ## Check style, types and import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports --no-logo

bench: $(COMPILED)/.done  ## Measure everything (half an hour or so; python -m benchmarks --help says more)
	PYTHONPATH=$(COMPILED) $(BIN)/python -m benchmarks run

bench-smoke: $(COMPILED)/.done  ## Measure a little of everything (half a minute)
	PYTHONPATH=$(COMPILED) $(BIN)/python -m benchmarks smoke

soak: $(READY)  ## Everything at random for half an hour, then the long tests that `make test` leaves out (an hour)
	$(BIN)/python -m tests.chaos --soak 30 --seed $(or $(SEED),1)
	$(BIN)/python -m pytest -m soak

chaos: $(READY)  ## Break real processes in some twenty ways, and count what was lost (some ten minutes)
	$(BIN)/python -m tests.chaos --seeds 1-20

fuzz: $(READY)  ## Search for inputs that break what reads them, MINUTES for each target (default 30), two at a time
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]'
	$(BIN)/python -m fuzz all --minutes $(or $(MINUTES),30)

browser: $(READY)  ## Test reports in a browser (Chromium has to be there)
	@command -v chromium >/dev/null || { echo "There is no chromium here: apt install chromium"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,browser]'
	$(BIN)/python -m pytest -m browser tests/browser

clean:  ## Remove caches and build products (.venv stays)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
