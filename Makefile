# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow lint types bench clean

demo: .venv/installed
	$(BIN)/erasure demo --out demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: .venv/installed
	$(PYTEST) -m "not slow"

# What takes long: kills at many moments, several processes, whole commands of the README, every optimiser and family.
test-slow: .venv/installed
	$(PYTEST) -m slow

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m benchmarks

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("erasure needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv demo

.PHONY: readme
readme: .venv/installed
	$(BIN)/python -m benchmarks.readme
