.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help run browser servers test test-long test-faults test-trackers check lint format bench bench-gate regression ab flags rollout release docs screenshots clean

# What is set in the caller's shell must not reach into our environment.
unexport PYTHONHOME PYTHONPATH VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX
# Without bytecode every process of a test compiles all of Esper, and every worker all tests.
unexport PYTHONDONTWRITEBYTECODE

BASE_PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(BIN)/python
READY := $(VENV)/.ready
PIP_INSTALL := $(PYTHON) -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt
# What is not for this Python is left as it is, and what hardly anybody loads left for later.
COMPILE := $(PYTHON) -m compileall -qq $(VENV)/lib -x "/(tests|transformers/models|ray/(data|llm|rllib|serve)|pip)/"
TRACKERS := 'wandb>=0.31,<0.32' 'trackio>=0.43,<0.44' 'mlflow-skinny>=3.17,<3.18' 'sqlalchemy<2.1' alembic hypothesis pytest pytest-timeout
# What a change is compared with: the newest commit that is a day old, unless told.
BASE ?=
override BASE := $(or $(BASE),$(shell git rev-list -1 --before="1 day ago" HEAD),HEAD~1)
FLAGS ?= deploy/flags.json
IF_CHANGED = if git diff --quiet "$(BASE)" -- src; then echo "src is as it was at $(BASE): nothing to compare."; else
# The models under test are tiny: with one thread each they run many times faster.
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(READY): pyproject.toml constraints.txt
	@$(BASE_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Esper needs Python 3.11 or newer: make BASE_PYTHON=python3.11 ...")'
	@echo "Setting up $(VENV); the first time this takes some minutes."
	@$(BASE_PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) --no-compile torch
	@# pip works on one core, so that torch is compiled meanwhile.
	@$(COMPILE) & $(PIP_INSTALL) --no-compile -e '.[run,dev,bench]'; ended=$$?; wait; exit $$ended
	@$(COMPILE) -j 0 || true
	@touch $@

run: $(READY) ## run esper, for example: make run ARGS="--help"
	@$(BIN)/esper run $(ARGS)

browser: ## make sure that there is a Chromium for the browser tests
	@scripts/browser >/dev/null || echo "Without it the browser tests are skipped."

servers: ## make sure that the servers of the tests are there: Redis, NATS, Prometheus
	@scripts/servers || echo "Without them their tests are skipped."

test: $(READY) browser servers ## run the tests
	$(PYTEST) $(ARGS)

test-long: $(READY) ## run the tests that are marked long
	$(PYTEST) -m long --timeout 1800 $(ARGS)

test-faults: $(READY) ## crash, kill, damage and fuzz checkpoints many thousand times
	ESPER_FAULTS=1 OMP_NUM_THREADS=1 $(PYTHON) -m pytest tests/faults -m "long or not long" -n 2 --timeout 7200 $(ARGS)

# Trackers ask for versions of libraries that others must not have: they get an environment of their own.
test-trackers: ## run the tests of all trackers, in an environment of their own
	@test -x .venv-trackers/bin/python || $(BASE_PYTHON) -m venv .venv-trackers
	@.venv-trackers/bin/python -m pip install --quiet --no-input --disable-pip-version-check -c constraints.txt torch
	@.venv-trackers/bin/python -m pip install --quiet --no-input --disable-pip-version-check -e '.[tensorboard]' $(TRACKERS)
	OMP_NUM_THREADS=1 .venv-trackers/bin/python -m pytest tests/conformance/test_trackers.py $(ARGS)

check: lint test ## everything that must pass before a change is merged

lint: $(READY) ## check format, style, types and import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(PYTHON) -m mypy -n 2
	$(BIN)/lint-imports --no-logo

format: $(READY) ## format the code and fix what can be fixed safely
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-gate: $(READY) ## is a step slower than at BASE? one small cell, for a change that is to be merged
	@$(IF_CHANGED) OMP_NUM_THREADS=1 $(BIN)/esper baseline compare --quick --base "$(BASE)" --output bench-gate.json; fi

regression: $(READY) ## is anything slower or larger than at BASE? all cells
	@$(IF_CHANGED) OMP_NUM_THREADS=1 $(BIN)/esper baseline compare --base "$(BASE)" --output regression.json; fi

ab: $(READY) ## does growth end better or worse than at BASE? runs of benchmarks/ab.yaml, in pairs
	@$(IF_CHANGED) $(BIN)/esper ab "$(BASE)" HEAD --measure benchmarks/ab.yaml --output ab $(ARGS); fi

flags: $(READY) ## is the store of flags valid?
	$(BIN)/esper flags validate --flags $(FLAGS)

rollout: $(READY) ## one look at the rollout in STATE
	$(BIN)/esper rollout advance --state "$(STATE)"

release: $(READY) ## build dist/: wheel, source archive, bill of materials; and try the wheel
	scripts/release $(PYTHON)

bench: $(READY) ## run the growth benchmark
	$(PYTHON) -m benchmarks.growth $(ARGS)

docs: $(READY) ## write the pages that are made from the code
	$(PYTHON) scripts/settings_page.py
	$(PYTHON) scripts/run_directory_page.py
	$(PYTHON) scripts/asyncapi_page.py
	$(PYTHON) -m scripts.metrics_page
	$(PYTHON) -m scripts.dashboards

screenshots: $(READY) browser ## make the pictures of docs/report.md
	OMP_NUM_THREADS=1 $(PYTHON) scripts/screenshots.py

clean: ## remove the environment, builds and caches
	rm -rf $(VENV) .venv-trackers build dist ab bench-gate.json regression.json .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
