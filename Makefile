# Needs Python 3.11 or newer with pip, and make. Nothing else is installed outside .venv.
#   PYTHON=python3.12   the Python to make .venv with
#   ARGS="--help"       more arguments for run and bench
#   MESHAG_FUZZ=100000  how many damaged answers make fuzz tries on each connector
#   SECONDS=600 SEED=7  for how long make chaos breaks things, and which ones (without: others every time)

PYTHON ?=
ARGS ?=
MESHAG_FUZZ ?= 100000
SECONDS ?= 60
SEED ?=
PY = .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup run test fuzz chaos chaos-mutants lint format bench clean daily-check

help: ## Show this
	@echo "MeshAG. make <target>:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' Makefile

setup: ## Make .venv with everything in it; done already: at once
	@PYTHON="$(PYTHON)" sh scripts/setup.sh

run: setup ## Start the whole mesh on this machine and open a page to talk to it
	@exec $(PY) -P -m meshag run $(ARGS)

test: setup ## Fetch the local models, lint, run all tests
	@$(PY) -P -m meshag models pull
	@sh scripts/lint.sh
	@$(PY) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

fuzz: setup ## Feed noise to the vendors' connectors: minutes
	@MESHAG_FUZZ=$(MESHAG_FUZZ) $(PY) -m pytest -m fuzz --timeout 7200 $(ARGS)

chaos: setup ## Kill, freeze and cut off whatever there is under live calls, check what they heard
	@exec env PYTHONPATH=.:tests $(PY) -m faults.chaos run --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

chaos-mutants: setup ## Break one rule of the product after the other: the checker has to notice each
	@exec env PYTHONPATH=.:tests $(PY) -m faults.chaos mutants $(ARGS)

lint: setup ## Check style, format, types and the direction of imports
	@sh scripts/lint.sh

format: setup ## Bring the code into its format
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

bench: setup ## Measure added latency and CPU at 1 to 50 concurrent calls
	@exec $(PY) -m bench $(ARGS)

daily-check: setup ## Try a Daily room for real; needs DAILY_API_KEY and DAILY_DOMAIN
	@exec $(PY) -P -m meshag.commands.daily_check

clean: ## Remove .venv and everything built; models stay in their cache
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
