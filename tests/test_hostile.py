"""Configurations from somebody else, such as an `experiment/best.yaml`, execute nothing."""

from pathlib import Path

import pytest

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
