# make train   sets up what is missing and trains the baseline
# make test    sets up what is missing, checks and tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test check bench

train: .venv/installed
	$(BIN)/python -m fmnist_sweep.train

test: check
	$(BIN)/python -m fmnist_sweep.data.source
	$(BIN)/pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m fmnist_sweep.bench --whole 3

# The stamp is written last: an interrupted installation is done again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@
