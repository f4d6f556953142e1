# make demo   trains, attacks and purifies digits, and writes runs/quickstart/report.html
# make test   the tests        make lint   ruff and mypy        make slow   the long tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?= -n 2

.PHONY: demo test slow lint format install torch tables

demo: $(VENV)/installed
	$(BIN)/python -m experiments.quickstart --workdir=runs/quickstart

test: $(VENV)/installed
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_FLAGS)

slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow $(PYTEST_FLAGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tables of README.md, from results/.
tables: $(VENV)/installed
	$(BIN)/python -m experiments.reproduction.tables

install: $(VENV)/installed

# PyTorch, for importing .pth weights, for the PyTorch examples and for their tests.
torch: $(VENV)/torch-installed

$(VENV)/installed: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: PYTHON: $(PYTHON) is $$($(PYTHON) -V 2>&1), expected Python >= 3.11 (make PYTHON=python3.11 ...)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

$(VENV)/torch-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@touch $@
