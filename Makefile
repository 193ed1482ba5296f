# Everything is built in .venv, from constraints.txt. Start with `make help`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test beds lint format types unit man wheelhouse mutants soak bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z.]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.13 make ... takes another Python (3.11 or newer); PYTEST_ARGS='-k journal' goes to pytest"

venv: $(STAMP) ## Make or renew .venv, with bpsd installed in it as it lies here

$(STAMP): pyproject.toml constraints.txt tests/testbeds/venv
	@tests/testbeds/venv $(PYTHON) $(VENV)
	@touch $@

demo: $(STAMP) ## Run a real workflow of 56 jobs, kill the daemon, see a job fail, mend and restart it (about a minute)
	@$(BIN)/python config/examples/demo/demo.py

test: beds lint types ## Run every check and every test; the last line is pytest's
	$(BIN)/python -m pytest $(PYTEST_ARGS)

beds: $(STAMP)
	@tests/testbeds/setup

lint: $(STAMP) ## Check style, format and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: $(STAMP) ## Check the types
	$(BIN)/mypy

unit: $(STAMP) ## Run the tests that start no daemon
	$(BIN)/python -m pytest tests/unit $(PYTEST_ARGS)

man: $(STAMP) ## Write the manual pages in docs/man, from the parsers and the settings
	@$(BIN)/python -m tests.manpages

wheelhouse: $(STAMP) ## Build the folder wheelhouse: bpsd and all it needs, to install where there is no index
	@$(BIN)/python -m tests.wheelhouse wheelhouse

mutants: $(STAMP) ## Put small faults into the code and see that unit tests notice (hours; TARGETS=reducer for a part)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt cosmic-ray
	$(BIN)/python -m tests.mutants $(TARGETS)

soak: beds ## Run the same tests at their full figures and keep docs/soak.md (hours; PYTEST_ARGS for a part)
	BPSD_SOAK=1 BPSD_SOAK_TABLE=docs/soak.md $(BIN)/python -m pytest --timeout=14400 $(PYTEST_ARGS)

bench: $(STAMP) ## Measure speed and memory, with the ratios side by side
	@$(BIN)/python -m benchmarks

clean: ## Remove what the other targets made
	rm -rf $(VENV) $(VENV)-* build dist wheelhouse demo-run .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find daemon adapters tests benchmarks config -name __pycache__ -prune -exec rm -rf {} +
