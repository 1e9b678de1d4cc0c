"""`python -m fmnist_sweep.sweeps`: what there is."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fmnist_sweep import sweeps as command
from fmnist_sweep.results import listing, record
from tests import sweeps
from tests.conftest import Command, InProcess
from tests.sweeps import trial


@pytest.fixture
def listed(in_process: InProcess) -> Command:
    return in_process(command.main)


def test_the_newest_comes_first(listed: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    old = sweeps.write(
        Path("multirun/2026-01-01/10-00-00"), [trial(0.8), trial(None, "FAILED", reason="x")]
    )
    new = sweeps.write(
        Path("multirun/new"), [trial(0.3), trial(0.2), trial(0.4, "PAUSED")],
        objective=["val_loss"], direction=["minimize"],
    )  # fmt: skip
    (new / "multirun.yaml").write_text("hydra: {sweeper: {n_trials: 40}}")
    environment = {"command": "python -m fmnist_sweep.train -m search=mlp name=new"}
    record.write_json(new / "2", "environment.json", environment)
    for path in (old, old / "sweep.csv"):
        os.utime(path, (time.time() - 3 * 86400,) * 2)
    outcome = listed()
    assert outcome.code == 0, outcome.err
    first, second = outcome.out.splitlines()[2:4]
    assert re.match(
        r"multirun/new +2/40 +interrupted +val_loss 0\.7 nats +\d+ s +-m search=mlp name=new", first
    )
    assert re.match(
        r"multirun/2026-01-01/10-00-00 +2 +complete +val_accuracy 80\.00 % +3 d", second
    )


def test_a_sweep_that_runs(tmp_path: Path) -> None:
    folder = sweeps.write(tmp_path / "a", [trial(0.8)])
    lock = folder / ".worker-1.lock"  # which its own process does not see
    hold = (
        f"import time; from fmnist_sweep.base.locks import *; lock = LifeLock(Path({str(lock)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", f"{hold}; time.sleep(60)"]) as process:
        deadline = time.monotonic() + 20
        while listing.find([tmp_path])[0].state != "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert listing.find([tmp_path])[0].state == "running"
        process.kill()
    assert listing.find([tmp_path])[0].state == "complete"


@pytest.mark.parametrize("given", ["nowhere", "."])
def test_none_is_one_line(given: str, listed: Command) -> None:
    outcome = listed(given)
    assert outcome.code == 1 and outcome.err.startswith(f"{given}: no ")
    assert len(outcome.err.splitlines()) == 1
