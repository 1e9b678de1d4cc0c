"""What comes from somebody else, such as an `experiment/best.yaml`, executes nothing."""

import json
import os
import pickle
import sqlite3
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

from fmnist_sweep.sweep import database
from tests import sweeps
from tests.conftest import Command

MADE = Path("made")
HOSTILE = {
    "model": f"model:\n  _target_: os.mkdir\n  path: {MADE}\n",
    "optimizer": f"optimizer:\n  _target_: os.mkdir\n  path: {MADE}\n",
    "callback": f"hydra:\n  callbacks:\n    bad:\n      _target_: os.mkdir\n      path: {MADE}\n",
    "log": (
        "hydra:\n  job_logging:\n    handlers:\n      bad:\n"
        f"        (): os.mkdir\n        path: {MADE}\n    root: {{handlers: [file, bad]}}\n"
    ),
    "launcher": f"hydra:\n  launcher:\n    _target_: os.mkdir\n    path: {MADE}\n",
    "sweeper": f"hydra:\n  sweeper:\n    _target_: os.mkdir\n    path: {MADE}\n",
    "sampler": f"hydra:\n  sweeper:\n    sampler:\n      _target_: os.mkdir\n      path: {MADE}\n",
    "pruner": f"hydra:\n  sweeper:\n    pruner:\n      _target_: os.mkdir\n      path: {MADE}\n",
    "space": "hydra:\n  sweeper:\n    custom_search_space: os.mkdir\n",
    "trust": (
        "hydra:\n  job:\n    env_set:\n      FMNIST_SWEEP_TRUST: os.*\n"
        f"model:\n  _target_: os.mkdir\n  path: {MADE}\n"
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_configuration_executes_nothing(
    kind: str, fmnist_train: Command, small: tuple[str, ...]
) -> None:
    Path("theirs/experiment").mkdir(parents=True)
    text = "# @package _global_\n" + HOSTILE[kind]
    Path("theirs/experiment/best.yaml").write_text(text)
    for sweep in ((), ("-m", "seed=1,2", "trainer.epochs=1")):
        outcome = fmnist_train("--config-dir", "theirs", "experiment=best", *small[:1], *sweep)
        if sweep or kind not in ("launcher", "sweeper", "sampler", "pruner", "space"):
            assert outcome.code == 1, outcome.out
            assert "Traceback" not in outcome.err and len(outcome.err.splitlines()) == 1
        assert not MADE.exists()


SEARCH = (
    *("-m", "name=a", "trainer.epochs=1", "hydra/sweeper/sampler=cmaes"),
    *("hydra.sweeper.sampler.n_startup_trials=1", "optimizer.lr=interval(0.001,0.1)"),
    "optimizer.eps=interval(1e-8,1e-2)",
)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(MADE),)


@pytest.mark.parametrize("protocol", [4, 5])  # 5 is Python 3.14's
def test_a_state_of_cma_es_in_a_study_executes_nothing(
    protocol: int, tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own states are gone on from."""
    own = SimpleNamespace(dumps=partial(pickle.dumps, protocol=protocol))
    monkeypatch.setattr(optuna.samplers._cmaes, "pickle", own)
    for trials in (8, 9):
        outcome = tiny(*SEARCH, f"hydra.sweeper.n_trials={trials}")
        assert outcome.code == 0, outcome.err
    database.disconnect()
    forged = json.dumps(pickle.dumps(Harmful()).hex())
    with sqlite3.connect("multirun/a/study.db") as connection:
        change = "UPDATE trial_system_attributes SET value_json = ? WHERE key LIKE ?"
        assert connection.execute(change, ('""', "%:optimizer:%")).rowcount
        assert connection.execute(change, (forged, "%:optimizer:0")).rowcount
    connection.close()
    outcome = tiny(*SEARCH, "hydra.sweeper.n_trials=11")
    assert outcome.code == 1 and not MADE.exists()
    assert "cmaes: the study's state of it cannot be read (it names posix.mkdir)" in outcome.err
    assert "Traceback" not in outcome.err
    database.disconnect()


def test_names_of_columns_hold_no_formula(tmp_path: Path) -> None:
    formula = '=HYPERLINK("http://x","y")'
    folder = sweeps.write(tmp_path / "sweep", [sweeps.trial(0.5, params={formula: 1})])
    header = (folder / "sweep.csv").read_text().splitlines()[0]
    assert "=HYPERLINK" in header and ",\"'=HYPERLINK" in header
