"""A bad trial fails alone, with its reason, whoever launches it."""

import re
from pathlib import Path

import pandas as pd
import pytest

from fmnist_sweep.sweep import database
from tests import tiny_task as bad
from tests.conftest import ROOT, Command

# Of joblib, submitit and Ray.
DIED = "TerminatedWorkerError|UncompletedJobError|WorkerCrashedError"
REASONS = {
    bad.RAISES: "RuntimeError: the task raised",
    bad.RETURNS_NONE: "returned None instead of val_accuracy",
    bad.RETURNS_NAN: "val_accuracy became nan",
    bad.RETURNS_TEXT: "returned 'good' instead of val_accuracy",
    bad.RETURNS_INF: "val_accuracy became inf",
    bad.EXITS: r"sys.exit\(3\)",
    bad.LEAVES: f"exit code 7|{DIED}",
    bad.IS_KILLED: f"SIGKILL|{DIED}",
    bad.CRASHES: f"SIGSEGV|{DIED}",
    bad.EATS_MEMORY: "MemoryError",
}
LAUNCHERS = {
    "basic": (),
    "joblib": ("hydra.launcher.n_jobs=2",),
    "submitit_local": ("hydra.sweeper.n_jobs=2",),
    "ray": ("hydra.sweeper.n_jobs=2", "hydra.launcher.init.num_cpus=2"),
}


@pytest.mark.slow
# submitit forgets processes of jobs that have died.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(one, marks=pytest.mark.torture) if one == "submitit_local" else one
        for one in LAUNCHERS
    ],
)
def test_each_kind_of_bad_trial(
    launcher: str, tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    good = [0, 1, 2, 3]
    seeds = [good[0], *REASONS, *good[1:]]
    listed = f"seed={','.join(map(str, seeds))}"
    where = (f"hydra/launcher={launcher}", *LAUNCHERS[launcher])
    outcome = tiny("-m", "name=a", listed, *where, "hydra.sweeper.max_failures=null")
    assert outcome.code == 0 and "Traceback" not in outcome.err, outcome.err
    rows = pd.read_csv("multirun/a/sweep.csv").set_index("seed")
    assert len(rows) == len(seeds)
    for seed in seeds:
        state, reason = rows.loc[seed, "state"], rows.loc[seed, "reason"]
        assert state == ("COMPLETE" if seed in good else "FAILED"), (seed, reason)
        if seed not in good:
            assert re.search(REASONS[seed], reason), (seed, reason)
    database.disconnect()


DEADLY = """
import torch
from torch import nn
from tests import tiny_task


class Deadly(nn.Linear):
    def __init__(self, way):
        super().__init__(784, 10)
        self.way, self.batches = way, 0

    def forward(self, images):
        self.batches += 1
        if self.way and self.batches > 20:
            tiny_task.bring_down(self.way)
        logits = super().forward(images.flatten(1))
        return logits if logits.sum().item() > 0 else logits  # so that it trains alone
"""


@pytest.mark.slow
def test_a_network_that_brings_its_process_down(
    fmnist_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", "deadly.*")
    ways = [0, bad.LEAVES, bad.IS_KILLED, bad.CRASHES, bad.EATS_MEMORY]
    outcome = fmnist_train(
        *("-m", "~model", "+model._target_=deadly.Deadly", "name=a", "trainer.epochs=3"),
        *("data.train_size=640", "data.val_size=100", "hydra.launcher.workers=1"),
        f"+model.way={','.join(map(str, ways))}",
        "hydra.sweeper.max_failures=null",
    )
    assert outcome.code == 0 and "Traceback" not in outcome.err, outcome.err
    rows = pd.read_csv("multirun/a/sweep.csv").sort_values("trial")
    assert list(rows.state) == ["COMPLETE", *["FAILED"] * 4]
    for way, reason in zip(ways[1:], rows.reason[1:]):
        assert re.search(REASONS[way], reason), (way, reason)
