"""Sweeps over several processes and hosts: clusters' launchers, proxies, passwords."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import optuna
import pandas as pd
import pytest

from benchmarks.coordinating import PROXY
from fmnist_sweep.sweep import database
from tests import postgres
from tests.conftest import ROOT, Command

SWEEP = ("-m", "name=a", "optimizer.lr=0.0001,0.001,0.01,0.1", "trainer.epochs=2")
SECRET = "open-sesame"


@pytest.fixture
def server() -> Iterator[postgres.Server]:
    if postgres.programs() is None:
        pytest.skip("no PostgreSQL on this machine")
    with postgres.server() as running:
        yield running
        database.disconnect()


def check_complete(n_trials: int, url: str | None = None) -> set[str]:
    """Each trial has run once, whoever ran it; returns who did."""
    table = pd.read_csv("multirun/a/sweep.csv")
    assert list(table.trial) == list(range(n_trials)) and set(table.state) == {"COMPLETE"}
    url = url or f"sqlite:///{Path('multirun/a/study.db').absolute()}"
    trials = database.load(database.Address(url, "a")).trials
    assert [trial.state for trial in trials] == [optuna.trial.TrialState.COMPLETE] * n_trials
    assert all(len(trial.intermediate_values) == 1 for trial in trials)
    notes = list(Path("multirun/a").glob("*/trial.json"))
    assert len(notes) == n_trials
    database.disconnect()
    return {note.read_text().split('"worker": ')[1][:14] for note in notes}


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        # submitit's executor of local processes; a cluster's differs in who starts them.
        ("hydra/launcher=submitit_local", "hydra.sweeper.n_jobs=2"),
        pytest.param(
            ("hydra/launcher=ray", "hydra.launcher.init.num_cpus=2", "hydra.sweeper.shares=2"),
            marks=pytest.mark.torture,
        ),
        pytest.param(
            ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.shares=2"),
            marks=pytest.mark.torture,
        ),
    ],
)
def test_jobs_of_a_cluster(
    launcher: tuple[str, ...],
    tiny: Command,
    server: postgres.Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TINY_TASK_MS", "600")
    url = server.new_database()
    outcome = tiny(*SWEEP, *launcher, f"hydra.sweeper.storage={url}")
    assert outcome.code == 0, outcome.err
    shares = [word for word in launcher if "shares" in word]
    assert len(check_complete(4, url)) == (2 if shares else 1)


def test_shares_need_processes(tiny: Command) -> None:
    for launcher in ("stacked", "basic"):
        outcome = tiny(*SWEEP, f"hydra/launcher={launcher}", "hydra.sweeper.shares=2")
        assert outcome.code == 1 and len(outcome.err.splitlines()) == 1
        assert outcome.err.startswith("hydra.sweeper.shares=2: needs a launcher that starts")
    assert not Path("multirun").exists()


def without_ray() -> None:
    """Ends the one that this process may have by now."""
    if ray := sys.modules.get("ray"):
        ray.shutdown()


def test_no_ray(tiny: Command) -> None:
    without_ray()
    where = ("hydra/launcher=ray", "hydra.launcher.init.address=127.0.0.1:1")
    outcome = tiny(*SWEEP, *where)
    assert outcome.code == 1 and len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("hydra.launcher.init.address=127.0.0.1:1: ")
    assert not Path("multirun").exists()


@pytest.mark.torture
def test_no_ray_anywhere(tmp_path: Path) -> None:
    """In a process of its own, as this one's would be found."""
    without_ray()
    where = ("hydra/launcher=ray", "hydra.launcher.init.address=auto")
    outcome = subprocess.run(
        [sys.executable, "-m", "tests.tiny_task", *SWEEP, *where],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 1 and len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert outcome.stderr.startswith("hydra.launcher.init=")
    assert not (tmp_path / "multirun").exists()


@pytest.mark.torture
def test_failing_shares_stop_the_sweep(tiny: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    where = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.shares=2")
    outcome = tiny("-m", "name=a", "seed=100,101,102,103,104,105,106,107,0", *where)
    assert outcome.code == 1 and "Traceback" not in outcome.err, outcome.err
    assert "hydra.sweeper.max_failures=3" in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", pytest.param("ray", marks=pytest.mark.torture)])
def test_a_share_that_dies_costs_no_trial(
    launcher: str, tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TINY_TASK_MS", "50")
    killed = []

    def kill_one() -> None:
        """The process of a share is the one that has its worker's lock."""
        while len(list(Path("multirun/a").glob("*/summary.json"))) < 3:
            time.sleep(0.02)
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                files = [os.readlink(file) for file in (process / "fd").iterdir()]
                ours = any(file.startswith(f"{Path.cwd()}/multirun/a/.worker-") for file in files)
                if ours and int(process.name) != os.getpid():
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.append(process.name)
                    return

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    n_jobs = {"joblib": "hydra.launcher.n_jobs=2", "ray": "hydra.launcher.init.num_cpus=2"}
    where = (f"hydra/launcher={launcher}", n_jobs[launcher], "hydra.sweeper.shares=2")
    outcome = tiny("-m", "name=a", "seed=range(16)", "trainer.epochs=2", *where)
    thread.join(30)
    assert outcome.code == 0 and killed, outcome.err
    table = pd.read_csv("multirun/a/sweep.csv")
    assert list(table.trial) == list(range(16)) and set(table.state) == {"COMPLETE"}
    database.disconnect()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["stacked", pytest.param("basic", marks=pytest.mark.torture)])
def test_a_proxy_before_the_database(
    launcher: str, tiny: Command, server: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed in mid-sweep and comes back."""
    monkeypatch.setenv("TINY_TASK_MS", "100")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = server.new_database()
    command = [sys.executable, "-c", PROXY, url, str(port)]
    proxies = [subprocess.Popen(command)]
    storage = f"hydra.sweeper.storage=grpc://127.0.0.1:{port}"

    def replace() -> None:
        while not list(Path("multirun/a").glob("*/summary.json")):
            time.sleep(0.02)
        proxies[0].kill()
        proxies[0].wait()
        time.sleep(7)  # longer than one attempt to reach it
        proxies.append(subprocess.Popen(command))

    thread = threading.Thread(target=replace, daemon=True)
    thread.start()
    try:
        outcome = tiny(*SWEEP, f"hydra/launcher={launcher}", storage)
        thread.join(30)
    finally:
        for proxy in proxies:
            proxy.kill()
            proxy.wait()
    assert outcome.code == 0, outcome.err
    assert "does not answer" in outcome.err
    check_complete(4, url)


def test_no_proxy(tiny: Command) -> None:
    outcome = tiny(*SWEEP, "hydra.sweeper.storage=grpc://127.0.0.1:9")
    assert outcome.code == 1 and len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("hydra.sweeper.storage=grpc://127.0.0.1:9: ")


@pytest.mark.slow
def test_two_hosts(
    tmp_path: Path, server: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a copy of the project of its own; they share the database and one folder."""
    url = server.new_database()
    (tmp_path / "multirun").mkdir()
    processes = []
    for host in ("one", "two"):
        for part in ("fmnist_sweep", "conf", "tests"):
            shutil.copytree(ROOT / part, tmp_path / host / part)
        where = (f"hydra.sweep.dir={tmp_path}/multirun/a", f"hydra.sweeper.storage={url}")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.tiny_task", *SWEEP, *where, "hydra.sweeper.n_jobs=1"],
            cwd=tmp_path / host,
            env={**os.environ, "PYTHONPATH": str(tmp_path / host), "TINY_TASK_MS": "900"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        processes.append(process)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    monkeypatch.chdir(tmp_path)
    assert len(check_complete(4, url)) == 2


@pytest.mark.parametrize(
    "launcher", ["stacked", pytest.param("submitit_local", marks=pytest.mark.torture)]
)
def test_a_password_is_in_no_file(
    launcher: str, tiny: Command, server: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    url = server.new_database().replace("sweep@", f"sweep:{SECRET}@")
    refused = tiny(*SWEEP, f"hydra.sweeper.storage={url}")
    assert refused.code == 1 and len(refused.err.splitlines()) == 1
    assert "a password here would be written" in refused.err and SECRET not in refused.err
    assert not Path("multirun").exists()
    monkeypatch.setenv("SWEEP_STORAGE", url)
    where = (f"hydra/launcher={launcher}", "hydra.sweeper.storage='${oc.env:SWEEP_STORAGE}'")
    outcome = tiny(*SWEEP, *where)
    assert outcome.code == 0, outcome.err
    files = [Path(folder, name) for folder, _, names in os.walk(".") for name in names]
    assert len(files) > 20
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert SECRET not in outcome.out + outcome.err
