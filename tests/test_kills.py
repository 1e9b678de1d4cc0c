"""Nothing is lost to a kill, and a polite request to stop is followed politely."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from fmnist_sweep.sweep import database
from tests import postgres
from tests.conftest import ROOT

SEARCH = (
    "-m",
    "name=a",
    "optimizer.lr=tag(log,interval(1e-4,1e-1))",
    "trainer.epochs=3",
    "hydra/sweeper/sampler=random",
)
N_TRIALS = 60


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield
    database.disconnect()


def check_complete(n_trials: int, url: str | None = None) -> None:
    """Exactly so many finished trials, each run to its end exactly once."""
    url = url or f"sqlite:///{Path('multirun/a/study.db').absolute()}"
    trials = database.load(database.Address(url, "a")).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * n_trials
    assert len({trial.params["optimizer.lr"] for trial in trials}) == n_trials
    rows = pd.read_csv("multirun/a/sweep.csv", dtype={"run": str})
    assert list(rows["trial"]) == list(range(n_trials))
    assert list(rows["objective"]) == [trial.value for trial in trials]
    assert list(rows["run"]) == [trial.user_attrs["run"] for trial in trials]
    ended = [path.parent.name.split("-")[0] for path in Path("multirun/a").glob("*/summary.json")]
    assert sorted(ended, key=int) == [str(number) for number in range(n_trials)]
    left = [path.name for path in Path("multirun/a").iterdir() if ".tmp" in path.name]
    assert not left


def no_process_is_left(group: int) -> bool:
    """Whether a process group ends within five seconds."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.torture)])
def test_kills_lose_nothing(kills: int) -> None:
    kill(kills, 0, N_TRIALS)
    check_complete(N_TRIALS)


@pytest.mark.torture
@pytest.mark.parametrize("storage", ["sqlite", "postgresql"])
@pytest.mark.parametrize("launcher", ["stacked", "basic", "joblib"])
def test_two_hundred_kills_lose_nothing(launcher: str, storage: str) -> None:
    seed = int(time.time())
    options = [f"hydra/launcher={launcher}"]
    if launcher == "joblib":
        options += ["hydra.launcher.n_jobs=2"]
    if storage == "sqlite":
        kill(200, seed, 400, *options)
        check_complete(400)
        return
    with postgres.server() as server:
        url = server.new_database()
        kill(200, seed, 400, *options, f"hydra.sweeper.storage={url}")
        check_complete(400, url)
        database.disconnect()


def kill(kills: int, seed: int, n_trials: int, *options: str) -> None:
    command = [sys.executable, "-m", "tests.kill_repeatedly", str(kills), str(seed)]
    outcome = subprocess.run(
        [*command, *SEARCH, *options, f"hydra.sweeper.n_trials={n_trials}"],
        env={**os.environ, "TINY_TASK_MS": "20"},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, f"seed {seed}: {outcome.stderr[-3000:]}"
    assert f"{kills} kills" in outcome.stdout
    again = [path for path in Path("multirun/a").iterdir() if "-" in path.name]
    assert again, "no trial was caught at work"


@pytest.mark.parametrize(
    ("launcher", "number", "code"),
    [
        (("hydra/launcher=basic",), signal.SIGINT, 130),
        pytest.param(("hydra/launcher=basic",), signal.SIGTERM, 143, marks=pytest.mark.torture),
        pytest.param(
            ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
            signal.SIGTERM,
            143,
            marks=pytest.mark.torture,
        ),
    ],
)
def test_a_request_to_stop(launcher: tuple[str, ...], number: int, code: int) -> None:
    command = [sys.executable, "-m", "tests.tiny_task", *SEARCH, *launcher]
    process = subprocess.Popen(
        [*command, "hydra.sweeper.n_trials=4"],
        env={**os.environ, "TINY_TASK_HANGS_IN": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not Path("multirun/a/2/.hydra").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert err.strip().splitlines()[-1].endswith("Run the same command to resume.")
    assert "rank" in out and "Traceback" not in err
    assert no_process_is_left(process.pid)
    url = f"sqlite:///{Path('multirun/a/study.db').absolute()}"
    states = [trial.state.name for trial in database.load(database.Address(url, "a")).trials]
    assert set(states) == {"COMPLETE", "WAITING"}
    assert len(pd.read_csv("multirun/a/sweep.csv")) == states.count("COMPLETE")
    database.disconnect()
    done = subprocess.run([*command, "hydra.sweeper.n_trials=4"], capture_output=True, text=True)
    assert done.returncode == 0 and "resumes" in done.stdout, done.stderr
    check_complete(4)


@pytest.mark.parametrize(
    "launcher",
    [("hydra/launcher=basic",), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")],
)
def test_no_trial_outlives_the_sweep(launcher: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tests.tiny_task", *SEARCH, *launcher]
    process = subprocess.Popen(
        [*command, "hydra.sweeper.n_trials=8"],
        env={**os.environ, "TINY_TASK_MS": "20000"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not Path("multirun/a/0/.hydra").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert no_process_is_left(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.torture), (signal.SIGKILL, -9)],
)
def test_stacks_in_processes_end_with_the_sweep(
    number: int, code: int, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_SWEEP_DATA", str(data_root))
    options = ("data.train_size=5000", "trainer.compile=false", "hydra.launcher.workers=2")
    command = [sys.executable, "-m", "fmnist_sweep.train", "-m", *options, "name=a"]
    swept = ("trainer.epochs=1,1000,1000,1", "model.width=32,64")
    with open("log.txt", "w") as log:
        process = subprocess.Popen(
            [*command, *swept], stdout=log, stderr=log, start_new_session=True
        )
    until = time.monotonic() + 90
    while time.monotonic() < until and len(list(Path("multirun/a").glob("*/history.csv"))) < 4:
        time.sleep(0.05)
    os.kill(process.pid, number)
    assert process.wait(timeout=30) == code, Path("log.txt").read_text()
    assert no_process_is_left(process.pid)
    url = f"sqlite:///{Path('multirun/a/study.db').absolute()}"
    states = [trial.state.name for trial in database.load(database.Address(url, "a")).trials]
    assert ("RUNNING" in states) == (number == signal.SIGKILL)
    finished = list(Path("multirun/a").glob("*/summary.json"))
    assert finished and len(finished) < 8


@pytest.mark.torture
def test_killed_trials_go_on_from_their_checkpoints(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_SWEEP_DATA", str(data_root))
    small = ("data.train_size=640", "data.val_size=100", "trainer.epochs=16")
    how = ("trainer.checkpoint=true", "trainer.compile=false", "hydra.launcher.workers=2")
    command = [sys.executable, "-m", "fmnist_sweep.train", "-m", "seed=1,2", *small, *how]
    folder = Path("multirun/a")

    def epochs(run: str) -> list[list[str]]:
        """A run's rows without their seconds."""
        file = folder / run / "history.csv"
        return [row.split(",")[:-1] for row in file.read_text().splitlines()[1:]]

    with open("log.txt", "w") as log:
        process = subprocess.Popen([*command, "name=a"], stdout=log, stderr=log)
        while (
            not all((folder / run / "history.csv").exists() for run in "01")
            or min(len(epochs(run)) for run in "01") < 3
        ):
            assert process.poll() is None, Path("log.txt").read_text()
            time.sleep(0.005)
        process.kill()
        process.wait()
    assert subprocess.run([*command, "name=a"]).returncode == 0
    assert subprocess.run([*command, "name=b"]).returncode == 0
    for run in "01":
        assert "Resuming after epoch" in (folder / f"{run}-2" / "train.log").read_text()
        assert len(epochs(f"{run}-2")) == 16
        assert epochs(f"{run}-2") == epochs(f"../b/{run}")
