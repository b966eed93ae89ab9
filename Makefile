# Everything sets itself up: a fresh machine needs Python >= 3.11, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REAL := .venv-litellm
LITELLM_PACKAGE ?= litellm[proxy]
# Several files of tests at a time: many wait for windows of a minute. The slow ones measure seconds, so fewer of them.
PYTEST := $(BIN)/python -m pytest --dist loadfile
.DEFAULT_GOAL := help

.PHONY: help setup demo test test-fast test-crash test-power test-real bench bench-check soak lint clean

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

# Leaves no stamp where pip fails: then, and only then, test-real is skipped.
$(REAL)/.ready:
	$(PYTHON) -m venv --clear $(REAL)
	echo '*' > $(REAL)/.gitignore
	$(REAL)/bin/python -m pip install --quiet --disable-pip-version-check '$(LITELLM_PACKAGE)' && touch $@ || true

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
	$(PYTEST) -n 2 -m 'not real'
	@$(MAKE) --no-print-directory test-real

test-fast: lint  ## the suite without its slow parts, and fewer examples of each property: under 3 minutes
	$(PYTEST) -n 4 --hypothesis-profile=fast -m 'not slow and not real'

test-crash: $(VENV)/.test  ## the crash matrix (12 minutes): over 300 kill -9; PIPELINE_CRASH_SEED=N plays one again
	PIPELINE_CRASH=full $(BIN)/python -m pytest -s tests/test_crash.py

test-real: $(VENV)/.test $(REAL)/.ready  ## against a real LiteLLM proxy, installed in a venv of its own
	@if test -e $(REAL)/.ready; then \
	  LITELLM=$(REAL)/bin/litellm $(BIN)/python -m pytest -m real tests/real; \
	else \
	  echo "**** SKIPPED: no test against a real LiteLLM proxy, for pip could not install $(LITELLM_PACKAGE) ****"; \
	fi

test-power: $(VENV)/.test  ## power cuts, kills at every sync and I/O errors, ten times as many as in the suite
	POWER=long $(BIN)/python -m pytest -s tests/test_power.py tests/test_kills.py tests/test_io_errors.py

bench: $(VENV)/.test  ## measure the engine's own cost (20 minutes), into benchmarks/RESULTS.md
	$(BIN)/python benchmarks/bench.py --results benchmarks/RESULTS.md

bench-check: $(VENV)/.test  ## the ratios again on fewer rows (2 minutes): none may be under 0.8 of the last results
	$(BIN)/python benchmarks/bench.py B1 B3 B8 B9 --small --rounds 3 --check benchmarks/RESULTS.md

soak: $(VENV)/.test  ## half an hour of faults, kills and two runs on one key; figures of memory, files, journal and bills
	$(BIN)/python tests/soak.py

clean:  ## take away what was made here, results of the demo included
	rm -rf $(VENV) $(REAL) runs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
