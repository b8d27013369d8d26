# `make setup` builds .venv; `make test` and `make train` set up first and then run.
# `make test` and `make test-thorough` together are all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= dev

.PHONY: setup test test-thorough test-fast test-gpu lint train clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
	  { echo "hybrid_lm needs Python >= 3.12; call make PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[$(EXTRAS)]'
	@touch $@

test: setup
	$(BIN)/python -m pytest -q -n 2 -m 'not thorough'

test-thorough: setup
	$(BIN)/python -m pytest -q -n 2 -m thorough

test-fast: setup
	$(BIN)/python -m pytest -q -n 2 -m 'not slow and not thorough'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --warnings

train: setup
	$(BIN)/python -m hybrid_lm.train --config exp/quickstart.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info

test-gpu: setup
	$(BIN)/python -m pytest -q tests/gpu
