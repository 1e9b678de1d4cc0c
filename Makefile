# make train   sets up what is missing and trains the baseline
# make test    sets up what is missing, checks and tests
# make torture tries for hours to break what docs/promises.md says
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test torture check postgres chromium bench bench-gpu bench-search

train: .venv/installed
	$(BIN)/python -m fmnist_sweep.train

test: check postgres chromium
	$(BIN)/python -m fmnist_sweep.data
	$(BIN)/pytest -n 2 --dist worksteal

torture: .venv/installed postgres
	$(BIN)/pytest -m torture

# The server that the tests run sweeps on; without one those tests are skipped.
postgres:
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
	  { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -qq postgresql; } || \
	  echo "No PostgreSQL: its tests are skipped (Debian's package is postgresql)"

# The browser that the page of a report is tried in; without one that test is skipped.
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { test "$$(id -u)" = 0 && apt-get update -qq && apt-get install -qq chromium; } || \
	  echo "No Chromium: its test is skipped (Debian's package is chromium)"

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m benchmarks

# Searches beside Ray Tune, Optuna alone and the stock sweeper, five seeds each: three hours on two
# idle cores. Goes on where it was interrupted.
bench-search: .venv/installed
	$(BIN)/python -m benchmarks.searching

# Needs a CUDA device.
bench-gpu: .venv/installed
	$(BIN)/python -m benchmarks gpu gpu-commands

# The stamp is written last: an interrupted installation is done again.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@
