# Two commands matter: `make demo` and `make test`. Both make .venv first, if need be.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := mas strategies benchmarks tools tests

.PHONY: demo test lint check-fast bench results clean

demo: $(VENV)/.installed
	$(BIN)/mas run configs/split_digits.yaml

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(SOURCES)

# The tests in a quarter of the time, while working.
check-fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow"

# The speed table: docs/benchmarks.json and docs/benchmarks.md. Leave the machine alone meanwhile.
bench: $(VENV)/.installed-dev
	$(BIN)/python -W ignore -m tools.bench

# docs/results.md and docs/critical_periods.md, from the tables beside them.
results: $(VENV)/.installed-dev
	$(BIN)/python -m tools.results

# An install is repeated only when what it depends on has changed.
$(VENV)/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
