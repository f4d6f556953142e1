# make demo   trains, attacks and purifies digits, and writes runs/quickstart/report.html
# make test   the tests        make lint   ruff and mypy
# make test TESTS="not slow"   what CI runs: with whole evaluations and trainings        make slow   the longest tests
# make notebooks   runs colab/ and stores what the cells print and draw
# make docs   these pages as a site, with an API reference: build/docs/index.html
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file stays in one process, which so traces and trains what its tests share once.
PYTEST_FLAGS ?= -n 2 --dist loadfile
TESTS ?= not slow and not ci
# Which versions to install: .ci/oldest.txt and .ci/newest.txt are the others that are tested.
CONSTRAINTS ?= constraints.txt

.PHONY: demo test slow lint format install torch tables docs notebooks

demo: $(VENV)/installed
	$(BIN)/python -m experiments.quickstart --workdir=runs/quickstart

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "$(TESTS)" $(PYTEST_FLAGS)

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tables of README.md and docs/results.md, from results/.
tables: $(VENV)/installed
	$(BIN)/python -m experiments.reproduction.tables

install: $(VENV)/installed

# Warnings are errors: a name without a page, a link that leads nowhere.
docs: $(VENV)/docs-installed
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs build/docs
	@echo "written: build/docs/index.html"

notebooks: $(VENV)/installed
	$(BIN)/python docs/execute.py

# PyTorch, for importing .pth weights, for the PyTorch examples and for their tests.
torch: $(VENV)/torch-installed

$(VENV)/installed: setup.cfg $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: PYTHON: $(PYTHON) is $$($(PYTHON) -V 2>&1), expected Python >= 3.11 (make PYTHON=python3.11 ...)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[test]'
	@touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

$(VENV)/torch-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) torch
	@touch $@
