"""A bad trial fails alone, with its reason, whoever launches it."""

import errno
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import DictConfig

from fmnist_sweep.sweep import database, hydra_job
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
    [one if one == "basic" else pytest.param(one, marks=pytest.mark.torture) for one in LAUNCHERS],
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


def end(way):
    if way == tiny_task.RAISES:
        raise RuntimeError("the task raised")
    if way:
        tiny_task.bring_down(way)


class Deadly(nn.Linear):
    def __init__(self, way, sent):
        super().__init__(784, 10)
        self.way, self.sent, self.batches = way, sent, 0

    def __setstate__(self, state):
        super().__setstate__(state)
        if self.sent:
            end(self.way)

    def forward(self, images):
        self.batches += 1
        if self.batches > 20:
            end(self.way)
        logits = super().forward(images.flatten(1))
        return logits if logits.sum().item() > 0 else logits  # so that it trains alone
"""


UNSENDABLE = """
import ctypes
from torch import nn


class Unsendable(nn.Linear):
    def __init__(self, way):
        class Local:
            pass

        super().__init__(784, 10)
        ways = {"lambda": lambda: 0, "class": Local(), "pointer": ctypes.c_char_p(b"")}
        self.held = ways.get(way)
        if way == "hook":  # of which its kind knows nothing: it joins a stack
            self.register_forward_hook(lambda module, given, logits: logits)

    def forward(self, images):
        return super().forward(images.flatten(1))
"""


@pytest.fixture
def sweep(
    fmnist_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pd.DataFrame]:
    """Sweeps a network of the test's own in stacks; returns the table."""

    def swept(source: str, target: str, *overrides: str) -> pd.DataFrame:
        module = target.partition(".")[0]
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
        monkeypatch.setenv("FMNIST_SWEEP_TRUST", f"{module}.*")
        outcome = fmnist_train(
            *("-m", "~model", f"+model._target_={target}", "name=a", "data.train_size=640"),
            *("data.val_size=100", "hydra.launcher.workers=1", "hydra.sweeper.max_failures=null"),
            *overrides,
        )
        assert outcome.code == 0 and "Traceback" not in outcome.err, outcome.err
        return pd.read_csv("multirun/a/sweep.csv").sort_values("trial")

    return swept


@pytest.mark.slow
@pytest.mark.parametrize("sent", [False, True])
def test_a_network_that_brings_its_process_down(
    sent: bool, sweep: Callable[..., pd.DataFrame]
) -> None:
    """While it trains, or already when it is sent there."""
    ways = [bad.LEAVES, bad.RAISES, bad.IS_KILLED, 0, bad.CRASHES, bad.EATS_MEMORY]
    swept = f"+model.way={','.join(map(str, ways))}", f"+model.sent={sent}"
    rows = sweep(DEADLY, "deadly.Deadly", *swept, "trainer.epochs=3")
    for way, state, reason in zip(ways, rows.state, rows.reason):
        assert state == ("FAILED" if way else "COMPLETE"), (way, reason)
        assert not way or re.search(REASONS[way], reason), (way, reason)


def test_a_network_that_cannot_be_sent(sweep: Callable[..., pd.DataFrame]) -> None:
    ways = ["none", "lambda", "hook", "class", "pointer", "nothing"]
    swept = f"+model.way={','.join(ways)}", "trainer.epochs=1"
    rows = sweep(UNSENDABLE, "unsendable.Unsendable", *swept)
    for way, state, reason in zip(ways, rows.state, rows.reason):
        assert state == ("COMPLETE" if way.startswith("no") else "FAILED"), (way, reason)
        assert way.startswith("no") or re.fullmatch(
            r"its model cannot be sent to another process \(.+\); use hydra/launcher=basic", reason
        ), (way, reason)


@pytest.mark.parametrize(
    "launcher",
    [
        *("stacked", "basic", "joblib"),
        *(pytest.param(one, marks=pytest.mark.torture) for one in ("submitit_local", "ray")),
    ],
)
def test_a_full_disk_is_no_fault_of_a_trial(
    launcher: str, tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the trial runs that meets it first."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    where = (f"hydra/launcher={launcher}", *LAUNCHERS.get(launcher, ()))
    sweep = ("-m", "name=a", "trainer.epochs=1", f"seed=0,{bad.FINDS_THE_DISK_FULL},1", *where)
    Path("multirun").mkdir()
    Path("multirun/full").touch()
    outcome = tiny(*sweep)
    assert outcome.code == 1 and "Traceback" not in outcome.err, outcome.err
    last = outcome.err.splitlines()[-1]
    assert "No space left on device" in last and last.endswith("Run the same command to resume.")
    Path("multirun/full").unlink()
    assert tiny(*sweep).code == 0
    assert list(pd.read_csv("multirun/a/sweep.csv").state) == ["COMPLETE"] * 3
    database.disconnect()


def test_a_full_disk_in_hydras_part_is_none_either(
    tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = hydra_job.configure_log, []

    def configure_log(config: DictConfig, *more: Any, **others: Any) -> None:
        calls.append(config)
        if len(calls) == 2:  # of the second trial
            raise OSError(errno.ENOSPC, "No space left on device")
        real(config, *more, **others)

    sweep = ("-m", "name=a", "trainer.epochs=1", "seed=0,1,2")
    with monkeypatch.context() as patch:
        patch.setattr(hydra_job, "configure_log", configure_log)
        outcome = tiny(*sweep)
    assert outcome.code == 1 and "No space left on device" in outcome.err.splitlines()[-1]
    assert tiny(*sweep).code == 0
    assert list(pd.read_csv("multirun/a/sweep.csv").state) == ["COMPLETE"] * 3
    database.disconnect()
