# Everything sets itself up: a fresh machine needs Python >= 3.11, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

.PHONY: help setup demo test test-fast lint clean

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.test: $(VENV)/.demo pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

setup: $(VENV)/.demo  ## make .venv and install the package in it

demo: $(VENV)/.demo  ## label 1,000 support tickets with the embedded simulator: no key, no network
	$(BIN)/pipeline run jobs/label_tickets.toml
	@echo "The first rows, as they were sent and answered:"
	@$(BIN)/pipeline try jobs/label_tickets.toml -n 3 -q

lint: $(VENV)/.test  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## the whole suite
	$(BIN)/python -m pytest

test-fast: lint  ## the suite without its slow parts: under 3 minutes
	$(BIN)/python -m pytest -m 'not slow'

clean:  ## take away what was made here, results of the demo included
	rm -rf $(VENV) runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
