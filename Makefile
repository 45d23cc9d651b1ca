.DEFAULT_GOAL := help
SHELL := bash
VENV := .venv
export PYTHONDONTWRITEBYTECODE :=
BIN := $(VENV)/bin
PYTHON ?= python3

.PHONY: help init demo check test lint schemas dashboards bench faults clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# An environment by uv, which is installed into it by pip when the machine has none. `demo` needs no development tools.
SYNC = test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	UV=$$(command -v uv || echo $(BIN)/uv); \
	test -x "$$UV" || $(BIN)/python -m pip install --quiet uv; \
	"$$UV" sync --frozen --quiet --inexact

$(BIN)/.demo: pyproject.toml uv.lock
	@$(SYNC) --no-dev
	@touch $@

$(BIN)/.ready: pyproject.toml uv.lock
	@$(SYNC) --group bench --extra trends
	@touch $@ $(BIN)/.demo

init: $(BIN)/.ready  ## make a ready checkout: environment with all development tools

demo: $(BIN)/.demo  ## run the whole chain on real census predictions
	@$(BIN)/errata demo

lint: $(BIN)/.ready  ## ruff, mypy strict, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: $(BIN)/.ready  ## lint, types, layers and the quick tests of every part; about a minute
	@$(MAKE) --no-print-directory -j 2 -Otarget lint parts

.PHONY: parts
parts: $(BIN)/.ready
	$(BIN)/pytest -q -n 2 -m "not whole and not servers"

test: lint  ## everything there is to test: also real servers, whole demo streams, killed processes, built wheels
	@bash tools/servers.sh
	$(BIN)/pytest -q -n 2

schemas: $(BIN)/.ready  ## write schemas/ from the contracts
	$(BIN)/python tools/make_schemas.py

dashboards: $(BIN)/.ready  ## write deploy/grafana/dashboards from the code
	$(BIN)/python tools/make_dashboards.py

bench: $(BIN)/.ready  ## quality and speed beside ceilings and peers, in one run; fails below a goal
	@bash tools/servers.sh
	$(BIN)/python tests/benchmarks/run.py

faults: $(BIN)/.ready  ## kill, freeze, fill and poison the chain on real Kafka; FAULTS="--quick" for minutes, or names of scenarios
	@bash tools/servers.sh
	$(BIN)/python tests/faults/run.py $(FAULTS)

clean:  ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .bench
