"""Sweeps over several processes and hosts: clusters' launchers, databases with passwords."""

import os
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest

from fmnist_sweep.sweep import study
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
        study.disconnect()


@pytest.mark.slow
def test_jobs_of_submitit(
    tiny: Command, server: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its executor of local processes; a cluster's differs in who starts them."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    url = server.new_database()
    where = (f"hydra.sweeper.storage={url}",)
    cluster = ("hydra/launcher=submitit_local", "hydra.sweeper.n_jobs=2")
    outcome = tiny(*SWEEP, *cluster, *where)
    assert outcome.code == 0, outcome.err
    table = pd.read_csv("multirun/a/sweep.csv")
    assert list(table.trial) == [0, 1, 2, 3] and set(table.state) == {"COMPLETE"}
    trials = study.load(study.Address(url, "a")).trials
    assert [trial.state for trial in trials] == [optuna.trial.TrialState.COMPLETE] * 4
    assert all(len(trial.intermediate_values) == 1 for trial in trials)


def test_a_password_is_in_no_file(
    tiny: Command, server: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.new_database().replace("sweep@", f"sweep:{SECRET}@")
    refused = tiny(*SWEEP, f"hydra.sweeper.storage={url}")
    assert refused.code == 1 and len(refused.err.splitlines()) == 1
    assert "a password here would be written" in refused.err and SECRET not in refused.err
    assert not Path("multirun").exists()
    monkeypatch.setenv("SWEEP_STORAGE", url)
    outcome = tiny(*SWEEP, "hydra.sweeper.storage='${oc.env:SWEEP_STORAGE}'")
    assert outcome.code == 0, outcome.err
    files = [Path(folder, name) for folder, _, names in os.walk(".") for name in names]
    assert len(files) > 20
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert SECRET not in outcome.out + outcome.err
