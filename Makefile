# `make demo` shows what qgraph does, `make test` checks it; both set up .venv themselves and are
# safe to run again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint bench models clean help

help:
	@echo "make demo    compile a real model for this CPU and show a before/after table"
	@echo "make test    lint, type-check and test"
	@echo "make bench   time and memory benchmarks"
	@echo "make models  train the small models in models/ again"

demo: $(VENV)/.ready-cpu
	$(BIN)/python -m models.demo

test: $(VENV)/.ready-dev lint
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.ready-dev
	$(BIN)/python -m benchmarks

models: $(VENV)/.ready-train
	$(BIN)/python -m models.digits.data
	$(BIN)/python -m models.digits.train

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2])' || \
	  { echo "qgraph needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready-cpu: $(BIN)/python pyproject.toml
	$(PIP) install -q -e '.[cpu]'
	@touch $@

$(VENV)/.ready-dev: $(BIN)/python pyproject.toml
	$(PIP) install -q -e '.[cpu,dev]'
	@touch $@

$(VENV)/.ready-train: $(VENV)/.ready-dev
	$(PIP) install -q -e '.[train]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
