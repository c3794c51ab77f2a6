# Needs GNU make and Python 3.10 to 3.13; everything else is installed into .venv.
# `make` alone lists the targets.

PYTHON ?= python3
DATA ?= synthetic
ARGS ?=
# Test processes; each holds TensorFlow, about 1.5 GB.
JOBS ?= 2

# Thousands of real cells take as long in a few epochs as the drawn ones in all of theirs.
DEMO_SET := $(if $(filter-out synthetic,$(DATA)),--set train.epochs=4)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
LOCK := uv pip compile --quiet --universal --python-version 3.10 --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock" pyproject.toml

# Stamps: installed once, and again when the lock changes.
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev

.DEFAULT_GOAL := help
.PHONY: help demo test lint types check format lock notebook clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "make demo DATA=PATH trains on your own cells; make test ARGS='-k config' runs a few tests;"
	@echo "PYTHON=python3.12 chooses the Python that .venv is made with."

demo: $(RUNTIME) ## train, evaluate, explain, export, predict and report, on drawn cells
	@set -e; \
	run=artifacts/demo-$$(date +%Y%m%d-%H%M%S); \
	set -x; \
	$(BIN)/python -m wbc_keras.train --config configs/demo.yaml --data "$(DATA)" --output $$run \
		$(DEMO_SET); \
	$(BIN)/python -m wbc_keras.evaluate --run $$run; \
	$(BIN)/python -m wbc_keras.explain --run $$run; \
	$(BIN)/python -m wbc_keras.export --run $$run; \
	$(BIN)/python -m wbc_keras.predict --model $$run/saved_model/1 --data "$(DATA)" \
		--output $$run/predictions.csv; \
	$(BIN)/python -m wbc_keras.report --run $$run; \
	{ set +x; } 2>/dev/null; \
	echo; \
	echo "Look at:"; \
	for path in report.html evaluation/test/metrics.json explanations/cells.png \
		saved_model/1 predictions.csv; do echo "  $$run/$$path"; done

test: $(DEV) ## run the whole suite, notebooks included
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: $(DEV) ## ruff, its formatter, and notebooks stored without outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@for notebook in notebooks/*.ipynb; do \
		[ ! -e "$$notebook" ] || $(BIN)/nbstripout --verify "$$notebook" || exit 1; done

types: $(DEV) ## mypy, strict on the plain layer
	$(BIN)/mypy

check: lint types test ## everything that CI runs

format: $(DEV) ## mend what ruff and nbstripout can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@for notebook in notebooks/*.ipynb; do \
		[ ! -e "$$notebook" ] || $(BIN)/nbstripout "$$notebook"; done

notebook: $(DEV) ## execute the notebooks
	$(BIN)/python -m pytest notebooks $(ARGS)

lock: ## write requirements*.txt anew from pyproject.toml (needs uv; ARGS=--upgrade for newer versions)
	$(LOCK) $(ARGS) --output-file requirements.txt
	$(LOCK) $(ARGS) --output-file requirements-dev.txt --extra dev --constraint requirements.txt

clean: ## remove .venv and caches; runs in artifacts/ stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build wbc_keras.egg-info
	find wbc_keras tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(RUNTIME): requirements.txt pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --requirement requirements.txt
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements-dev.txt $(RUNTIME)
	$(PIP) install --quiet --requirement requirements-dev.txt
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
		echo "error: Python 3.10 to 3.13 is needed. Received: $$($(PYTHON) --version 2>&1);" \
		"name another one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
