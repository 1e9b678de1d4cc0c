"""What every storage and launcher must do alike, on SQLite and on a PostgreSQL server."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import optuna
import pandas as pd
import pytest

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.processes import call_in_process
from fmnist_sweep.sweep import begin, database
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import SweepStudy
from tests import postgres
from tests.conftest import ROOT, Command, Outcome

JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SEARCH = ("optimizer.lr=tag(log,interval(1e-4,1e-1))", "trainer.epochs=1")


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    try:
        with postgres.server() as running:
            yield running
    except LookupError as error:
        pytest.skip(str(error))


@dataclass
class Backend:
    """A command line on one storage and launcher, and the study that it makes."""

    command: Command
    storage: str | None
    launcher: tuple[str, ...]

    def sweep(self, *arguments: str) -> Outcome:
        return self.command("-m", *self.options, *arguments)

    @property
    def options(self) -> tuple[str, ...]:
        storage = (f"hydra.sweeper.storage='{self.storage}'",) if self.storage else ()
        return ("name=a", *storage, *self.launcher)

    def study(self) -> optuna.Study:
        url = self.storage or f"sqlite:///{Path('multirun/a/study.db').absolute()}"
        return database.load(database.Address(url, "a"))

    def states(self) -> list[str]:
        return [trial.state.name for trial in self.study().trials]


@contextmanager
def new_storage(name: str, request: pytest.FixtureRequest) -> Iterator[str | None]:
    is_server = name == "postgresql"
    yield request.getfixturevalue("server").new_database() if is_server else None
    database.disconnect()


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest) -> Iterator[str | None]:
    with new_storage(request.param, request) as url:
        yield url


# CI tries each storage and each launcher once.
@pytest.fixture(
    params=[
        "basic-sqlite",
        "joblib-postgresql",
        pytest.param("basic-postgresql", marks=pytest.mark.torture),
        pytest.param("joblib-sqlite", marks=pytest.mark.torture),
    ]
)
def backend(request: pytest.FixtureRequest, tiny: Command) -> Iterator[Backend]:
    launcher, storage = request.param.split("-")
    with new_storage(storage, request) as url:
        yield Backend(tiny, url, JOBLIB if launcher == "joblib" else ())


def table() -> pd.DataFrame:
    return pd.read_csv("multirun/a/sweep.csv")


def test_grid_runs_in_order_and_is_told(backend: Backend) -> None:
    outcome = backend.sweep("optimizer.lr=0.1,0.001,0.01", "trainer.epochs=1,2")
    assert outcome.code == 0, outcome.err
    expected = [(lr, epochs) for lr in (0.1, 0.001, 0.01) for epochs in (1, 2)]
    trials = backend.study().trials
    assert [(t.params["optimizer.lr"], t.params["trainer.epochs"]) for t in trials] == expected
    assert list(table()["objective"]) == [trial.value for trial in trials]
    assert list(table()["trial"]) == list(range(6))


def test_n_trials_is_a_total_and_nothing_repeats(backend: Backend) -> None:
    for total in (3, 3, 6):
        outcome = backend.sweep(*SEARCH, f"hydra.sweeper.n_trials={total}")
        assert outcome.code == 0, outcome.err
        assert backend.states() == ["COMPLETE"] * total
    rates = [trial.params["optimizer.lr"] for trial in backend.study().trials]
    assert rates[0] == 0.001 and len(set(rates)) == 6
    before = {path: path.read_bytes() for path in Path("multirun/a").rglob("*.json")}
    again = backend.sweep(*SEARCH, "hydra.sweeper.n_trials=6")
    assert again.code == 0 and "is complete" in again.out and "baseline" in again.out
    assert all(path.read_bytes() == content for path, content in before.items())


def test_failures_have_their_reason(backend: Backend) -> None:
    outcome = backend.sweep("seed=1,100,2,400,3", "trainer.epochs=1")
    assert outcome.code == 0, outcome.err
    assert backend.states() == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    reasons = ["RuntimeError: the task raised", "sys.exit(3)"]
    assert list(table()["reason"].dropna()) == reasons
    assert [t.user_attrs["reason"] for t in backend.study().trials[1:4:2]] == reasons


def test_pruning_works_where_the_trial_runs(backend: Backend) -> None:
    outcome = backend.sweep(
        "optimizer.lr=0.001,0.0011,0.1,0.00001",
        "trainer.epochs=4",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=2",
    )
    assert outcome.code == 0, outcome.err
    assert backend.states() == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    pruned = backend.study().trials[2]
    assert list(pruned.intermediate_values) == [1]
    assert table()["reason"][2] == "pruned after epoch 1"


def test_two_objectives(backend: Backend) -> None:
    outcome = backend.sweep("search=two_objectives", "trainer.epochs=1", "hydra.sweeper.n_trials=4")
    assert outcome.code == 0, outcome.err
    rows = table()
    assert [trial.values for trial in backend.study().trials] == [
        list(pair) for pair in rows[["objective_val_accuracy", "objective_seconds"]].values
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("optimizer.lr=0.01,0.1", "trainer.epochs=1"), "optimizer.lr"),
        (("optimizer.lr=0.001,0.1", "trainer.epochs=2"), "trainer.epochs: 1 -> 2"),
        (("optimizer.lr=0.001,0.1", "trainer.epochs=1", "model.depth=3"), "model.depth: 2 -> 3"),
        (
            ("optimizer.lr=0.001,0.1", "trainer.epochs=1", "hydra.sweeper.direction=minimize"),
            "direction: ['maximize'] -> ['minimize']",
        ),
        (
            ("optimizer.lr=0.001,0.1", "trainer.epochs=1", "hydra.sweeper.objective=val_loss"),
            "objective: ['val_accuracy'] -> ['val_loss']",
        ),
    ],
)
def test_changes_are_refused(
    tiny: Command, storage: str | None, change: tuple[str, ...], said: str
) -> None:
    backend = Backend(tiny, storage, ())
    assert backend.sweep("optimizer.lr=0.001,0.1", "trainer.epochs=1").code == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in Path("multirun").rglob("*.csv"))
    outcome = backend.sweep(*change)
    assert outcome.code == 1 and said in outcome.err
    assert "name=" in outcome.err and "accept_changes" in outcome.err
    assert len(outcome.err.splitlines()) <= 6
    assert backend.states() == ["COMPLETE"] * 2
    after = sorted((path, path.stat().st_mtime_ns) for path in Path("multirun").rglob("*.csv"))
    assert after == before


def test_changes_are_accepted_when_told(tiny: Command, storage: str | None) -> None:
    backend = Backend(tiny, storage, ())
    search = ("hydra.sweeper.n_trials=2", "trainer.epochs=1")
    assert backend.sweep(*search, "optimizer.lr=interval(0.001,0.01)").code == 0
    wider = ("hydra.sweeper.n_trials=4", "trainer.epochs=1", "optimizer.lr=interval(0.01,0.1)")
    assert backend.sweep(*wider).code == 1
    assert backend.sweep(*wider, "hydra.sweeper.accept_changes=true").code == 0
    rates = [trial.params["optimizer.lr"] for trial in backend.study().trials]
    assert max(rates[:2]) <= 0.01 <= min(rates[2:])


def test_another_folders_study_is_not_joined(tiny: Command, server: postgres.Server) -> None:
    backend = Backend(tiny, server.new_database(), ())
    assert backend.sweep("seed=1,2", "trainer.epochs=1").code == 0
    Path("multirun/a").rename("multirun/moved")
    outcome = backend.sweep("seed=1,2", "trainer.epochs=1")
    assert outcome.code == 1 and "another folder" in outcome.err
    assert not Path("multirun/a").exists()
    database.disconnect()


def test_a_database_points_at_no_run_outside_of_the_sweep(tiny: Command) -> None:
    backend = Backend(tiny, None, ())
    assert backend.sweep("seed=1,2", "trainer.epochs=1").code == 0
    shutil.copytree("multirun/a/1", "elsewhere")
    shutil.rmtree("multirun/a/1")
    opened = backend.study()
    storage = database.storage(f"sqlite:///{Path('multirun/a/study.db').absolute()}")
    with sqlite3.connect("multirun/a/study.db") as connection:
        connection.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
    connection.close()
    storage.set_trial_user_attr(opened.trials[1]._trial_id, "run", "../../elsewhere")
    database.disconnect()
    again = backend.sweep("seed=1,2", "trainer.epochs=1")
    assert again.code == 0 and "1 interrupted to be run again" in again.out
    assert Path("multirun/a/1/summary.json").exists()
    assert backend.states() == ["COMPLETE"] * 2


@pytest.mark.parametrize("worker", ["x/../../../victim", None, 7, "lockf"])
def test_a_run_folder_points_at_no_lock_outside_of_the_sweep(tiny: Command, worker: object) -> None:
    backend = Backend(tiny, None, ())
    assert backend.sweep("seed=1,2", "trainer.epochs=1").code == 0
    victim = Path("victim.lock")
    victim.touch()
    Path("multirun/a/.worker-x").mkdir()
    note = Path("multirun/a/1/trial.json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "worker": worker}))
    Path("multirun/a/1/summary.json").unlink()
    Path("multirun/trial.json").write_bytes(note.read_bytes())
    Path("multirun/summary.json").write_bytes(Path("multirun/a/0/summary.json").read_bytes())
    with sqlite3.connect("multirun/a/study.db") as connection:
        connection.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
        if worker is None:
            connection.execute("UPDATE trial_user_attributes SET value_json = '\"..\"'")
    connection.close()
    database.disconnect()
    again = backend.sweep("seed=1,2", "trainer.epochs=1")
    assert again.code == 0 and "1 interrupted to be run again" in again.out, again.err
    assert victim.exists() and backend.states() == ["COMPLETE"] * 2


def test_a_start_in_vain_removes_no_folder_that_others_work_in(
    tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, *_: object) -> None:
        (folder / "0").mkdir()  # as another process does that has come first
        raise ConfigError("hydra.sweeper.storage: refused")

    backend = Backend(tiny, None, ())
    with monkeypatch.context() as patch:
        patch.setattr(begin, "SweepStudy", fail)
        assert backend.sweep("seed=1,2").err.startswith("hydra.sweeper.storage: refused")
    assert Path("multirun/a/0").exists()


def work_beside(folder: Path, space: Space, settings: Settings) -> None:
    other = SweepStudy(folder, "a", space, settings, 0)
    assert other.processes() == 2
    other.close()


def test_processes_at_work_are_counted(tmp_path: Path) -> None:
    space = Space({}, {}, {}, {}, [], [], {}, {}, 1, True, True)
    settings = Settings.model_construct(
        objective=["val_accuracy"],
        direction=["maximize"],
        storage=None,
        custom_search_space=None,
        accept_changes=False,
        constraints={},
        seed_key=None,
        repeats=None,
        scheduler=None,
        sampler={"_target_": "optuna.samplers.RandomSampler"},
    )
    first = SweepStudy(tmp_path, "a", space, settings, 0)
    (tmp_path / ".worker-gone.lock").touch()

    call_in_process(partial(work_beside, tmp_path, space, settings), database.__name__)
    assert first.processes() == 1
    first.close()


@pytest.mark.torture  # CI tries six of them
def test_two_processes_share_a_sweep(tiny: Command, storage: str | None) -> None:
    backend = Backend(tiny, storage, ())
    command = [sys.executable, "-m", "tests.tiny_task", "-m", *backend.options]
    search = (*SEARCH, "hydra.sweeper.n_trials=24", "hydra/sweeper/sampler=random")
    processes = [
        subprocess.Popen(
            [*command, *search],
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "TINY_TASK_MS": "50"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert backend.states() == ["COMPLETE"] * 24
    assert len({trial.params["optimizer.lr"] for trial in backend.study().trials}) == 24
    folders = {path.parent.name for path in Path("multirun/a").glob("*/trial.json")}
    assert folders == {str(number) for number in range(24)}
    assert len(table()) == 24
    workers = {
        path.read_text().split('"worker": ')[1][:14]
        for path in Path("multirun/a").glob("*/trial.json")
    }
    assert len(workers) == 2
