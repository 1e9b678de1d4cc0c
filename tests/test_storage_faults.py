"""A database that is locked, restarts or is gone costs no trial."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from fmnist_sweep.sweep import database
from tests import postgres
from tests.conftest import Command

N_TRIALS = 12
SWEEP = (
    *("-m", "name=a", f"hydra.sweeper.n_trials={N_TRIALS}", "trainer.epochs=3"),
    *("optimizer.lr=tag(log,interval(1e-4,1e-1))", "hydra/sweeper/pruner=median"),
    "hydra.sweeper.pruner.n_startup_trials=1000",
)
STACKED, BASIC = (), ("hydra/launcher=basic",)
# CI tries what the trials of a stack share.
launchers = pytest.mark.parametrize(
    "launcher", [STACKED, pytest.param(BASIC, marks=pytest.mark.torture)], ids=["stacked", "basic"]
)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TINY_TASK_MS", "30")
    monkeypatch.setattr(database, "SQLITE_WAIT", 0.5)
    yield
    database.disconnect()


@contextmanager
def in_mid_sweep(fault: Callable[[], None]) -> Iterator[None]:
    """Does something in another thread once three trials have finished."""

    def wait_and_do() -> None:
        while len(list(Path("multirun/a").glob("*/summary.json"))) < 3:
            time.sleep(0.01)
        fault()

    thread = threading.Thread(target=wait_and_do, daemon=True)
    thread.start()
    yield
    thread.join(30)
    assert not thread.is_alive()


@contextmanager
def locked() -> Iterator[None]:
    connection = sqlite3.connect("multirun/a/study.db", isolation_level=None, timeout=30)
    connection.execute("BEGIN EXCLUSIVE")
    yield
    connection.execute("ROLLBACK")
    connection.close()


def check_complete() -> None:
    table = pd.read_csv("multirun/a/sweep.csv")
    assert list(table.trial) == list(range(N_TRIALS))
    assert set(table.state) == {"COMPLETE"}
    assert len(list(Path("multirun/a").glob("*/summary.json"))) == N_TRIALS  # none ran twice


def lock_for(seconds: float) -> None:
    with locked():
        time.sleep(seconds)


@launchers
@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.torture)])
def test_a_locked_file_is_waited_for(
    seconds: float, launcher: tuple[str, ...], tiny: Command
) -> None:
    with in_mid_sweep(lambda: lock_for(seconds)):
        outcome = tiny(*SWEEP, *launcher)
    assert outcome.code == 0, outcome.err
    assert "database does not answer (" in outcome.err and "locked" in outcome.err
    check_complete()


@launchers
@pytest.mark.parametrize("seconds", [4, pytest.param(60, marks=pytest.mark.torture)])
def test_a_server_that_restarts_is_waited_for(
    seconds: float, launcher: tuple[str, ...], tiny: Command
) -> None:
    if postgres.programs() is None:
        pytest.skip("no PostgreSQL on this machine")
    with postgres.server() as server:

        def restart() -> None:
            server.stop()
            time.sleep(seconds)
            server.start()

        with in_mid_sweep(restart):
            storage = f"hydra.sweeper.storage={server.new_database()}"
            outcome = tiny(*SWEEP, *launcher, storage)
        assert outcome.code == 0, outcome.err
        assert "database does not answer (" in outcome.err
        check_complete()
        database.disconnect()


@launchers
def test_results_outlive_a_database_that_is_gone_for_good(
    launcher: tuple[str, ...], tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE", 1.5)
    over = threading.Event()

    def lock() -> None:
        with locked():
            over.wait(60)

    with in_mid_sweep(lock):
        outcome = tiny(*SWEEP, *launcher)
        over.set()
    assert outcome.code == 1
    last = outcome.err.strip().splitlines()[-1]
    assert last.startswith("The study's database is gone (") and last.endswith(
        "Run the same command to resume."
    )
    assert "Traceback" not in outcome.err
    finished = {p: p.read_bytes() for p in Path("multirun/a").glob("*/summary.json")}
    assert len(finished) >= 3 and len(pd.read_csv("multirun/a/sweep.csv")) == len(finished)
    monkeypatch.setattr(database, "PATIENCE", 60.0)
    again = tiny(*SWEEP, *launcher)
    assert again.code == 0, again.err
    table = pd.read_csv("multirun/a/sweep.csv")
    assert list(table.trial) == list(range(N_TRIALS)) and set(table.state) == {"COMPLETE"}
    assert {p: p.read_bytes() for p in finished} == finished
