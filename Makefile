# `make` alone explains itself. Everything below sets up what it needs; nothing has to be installed by hand first.
VENV ?= .venv
BIN := $(VENV)/bin
GRAPH ?= graphs/disagg_router.yaml
export VIRTUAL_ENV :=

.PHONY: help setup serve test unit integration e2e check format lint types imports docs bench pins clean

help:  ## Show this help
	@awk 'BEGIN {FS = ":.*## "} /^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Make the virtual environment (pinned; CPU or NVIDIA GPU, found by itself)
	@requirements/install.sh $(VENV)

setup-dev:
	@requirements/install.sh $(VENV) test dev bench

serve: setup  ## Set up and serve the model `demo`: a KV-aware router, two decode and one prefill worker, LMCache, all real (GRAPH=graphs/….yaml for another graph)
	@exec $(BIN)/penstock up $(GRAPH) $(ARGS)

test: setup-dev  ## Set up and run every test: lint, types, unit, integration (real NATS), e2e (simulated engine and real vLLM)
	@$(MAKE) --no-print-directory lint types imports
	@$(BIN)/python -m pytest $(ARGS)

unit: setup-dev  ## Run the unit tests (no network, seconds)
	@$(BIN)/python -m pytest tests/unit $(ARGS)

integration: setup-dev  ## Run the integration tests (real NATS server, both engines)
	@$(BIN)/python -m pytest tests/integration $(ARGS)

e2e: setup-dev  ## Launch whole graphs and speak to them over HTTP
	@$(BIN)/python -m pytest tests/e2e $(ARGS)

check: setup-dev lint types imports  ## What to run before a commit: format, lint, types, import rule, unit tests (under a minute)
	@$(BIN)/python -m pytest -q tests/unit

format: setup-dev  ## Format the code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

lint:
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types:
	@$(BIN)/mypy

imports:
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

docs: setup  ## Write docs/protocol.md and docs/settings.md anew from the code
	@$(BIN)/python docs/generate.py

bench: setup-dev  ## Measure against the peers and the goals (a quarter of an hour; ARGS="--list" says what, ARGS="jobs" runs one)
	@$(BIN)/python -m benchmarks.bench $(ARGS)

pins: setup-dev  ## Rewrite requirements/*.txt from what is installed
	@$(BIN)/python requirements/pin.py

clean:  ## Remove the virtual environment and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis *.egg-info
