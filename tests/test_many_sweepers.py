"""Six processes that start in the same second on one new study."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest

from fmnist_sweep.sweep import database
from tests import postgres
from tests.conftest import ROOT

PROCESSES, N_TRIALS = 6, 24
SEARCH = (
    *("-m", "name=a", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "trainer.epochs=1"),
    *("hydra/sweeper/sampler=random", f"hydra.sweeper.n_trials={N_TRIALS}"),
)
# Forked from one that has imported everything: they begin within milliseconds.
PROGRAM = f"""
import os, sys
from fmnist_sweep.sweep import begin
from tests import tiny_task
children = []
for number in range({PROCESSES}):
    child = os.fork()
    if not child:
        code = 1
        try:
            tiny_task.main()
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(str(codes) if any(codes) else 0)
"""


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.torture)])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The study's address; the working directory is empty."""
    monkeypatch.chdir(tmp_path)
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/multirun/a/study.db"
    elif postgres.programs() is None:
        pytest.skip("no PostgreSQL on this machine")
    else:
        with postgres.server() as server:
            yield server.new_database()
            database.disconnect()
    database.disconnect()


@pytest.mark.slow
def test_six_sweepers_at_once(storage: str) -> None:
    check_six_sweepers(storage)


@pytest.mark.torture
@pytest.mark.parametrize("turn", range(20))
def test_six_sweepers_at_once_twenty_times(turn: int, storage: str) -> None:
    check_six_sweepers(storage)


def check_six_sweepers(storage: str) -> None:
    where = () if storage.startswith("sqlite") else (f"hydra.sweeper.storage={storage}",)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TINY_TASK_MS": "20"}
    outcome = subprocess.run(
        [sys.executable, "-c", PROGRAM, *SEARCH, *where],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    trials = database.load(database.Address(storage, "a")).trials
    assert [trial.state for trial in trials] == [optuna.trial.TrialState.COMPLETE] * N_TRIALS
    assert len({trial.params["optimizer.lr"] for trial in trials}) == N_TRIALS
    ended = {path.parent.name for path in Path("multirun/a").glob("*/summary.json")}
    assert ended == {trial.user_attrs["run"] for trial in trials}
    assert len(ended) == len(list(Path("multirun/a").glob("*/trial.json"))) == N_TRIALS
    assert len(pd.read_csv("multirun/a/sweep.csv")) == N_TRIALS
