"""Limits on what is known before a trial runs, `hydra.sweeper.constraints`."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import Command
from tests.test_any_app import STUDY, Shell, app, write

__all__ = ["app"]  # a fixture

RATE = "optimizer.lr=tag(log,interval(1e-4,1e-2))"
WIDTH = "model.width=range(16,513,16)"
LIMIT = 60_000


def parameters(width: int) -> int:
    """Those of a 784-width-width/2-10 network."""
    half = width // 2
    return 784 * width + width + width * half + half + half * 10 + 10


def table() -> pd.DataFrame:
    return pd.read_csv("multirun/a/sweep.csv")


@pytest.mark.parametrize(
    "sampler",
    ["sampler=tpe", "sampler=gp hydra.sweeper.sampler.n_startup_trials=3", "sampler=random"],
)
def test_no_trial_exceeds_them(sampler: str, tiny: Command) -> None:
    more = f"hydra/sweeper/{sampler}".split()
    search = (
        "-m",
        "name=a",
        RATE,
        WIDTH,
        *more,
        f"hydra.sweeper.constraints={{parameters:{LIMIT}}}",
    )
    outcome = tiny(*search, "hydra.sweeper.n_trials=7")
    assert outcome.code == 0, outcome.err
    assert "default configuration is not tried: parameters = 109,386 exceeds" in outcome.err
    widths = table()["model.width"]
    assert len(widths) == 7 and widths.map(parameters).max() <= LIMIT
    assert widths.nunique() > 2
    again = tiny(*search, "hydra.sweeper.n_trials=8")
    assert again.code == 0, again.err
    assert len(table()) == 8 and table()["model.width"].map(parameters).max() <= LIMIT


def test_steps_of_the_optimizer(tiny: Command) -> None:
    space = ("data.batch_size=choice(16,32,64)", "trainer.epochs=int(interval(1,20))", RATE)
    limits = "hydra.sweeper.constraints={steps: 200, parameters: 1e6}"
    outcome = tiny(
        "-m", "name=a", *space, limits, "hydra.sweeper.n_trials=10", "data.train_size=640"
    )
    assert outcome.code == 0, outcome.err
    steps = table()["trainer.epochs"] * (640 / table()["data.batch_size"])
    assert len(steps) == 10 and steps.max() <= 200


def test_a_grid_leaves_points_out(tiny: Command) -> None:
    grid = ("-m", "name=a", "model.width=32,64,128,256", "optimizer.lr=0.1,0.2")
    limit = f"hydra.sweeper.constraints={{parameters:{LIMIT}}}"
    outcome = tiny(*grid, limit)
    assert outcome.code == 0, outcome.err
    assert "hydra.sweeper.constraints: leaves out 4 of 8 points" in outcome.err
    assert sorted(zip(table()["model.width"], table()["optimizer.lr"])) == [
        (32, 0.1),
        (32, 0.2),
        (64, 0.1),
        (64, 0.2),
    ]
    assert "is complete: 4 of 4" in tiny(*grid, limit).out
    changed = tiny(*grid, "hydra.sweeper.constraints={parameters:200000}")
    assert changed.code == 1 and "hydra.sweeper.constraints: {'parameters': 60000.0}" in changed.err


def test_workers_observe_them(tiny: Command) -> None:
    outcome = tiny(
        "-m",
        "name=a",
        RATE,
        WIDTH,
        f"hydra.sweeper.constraints={{parameters:{LIMIT}}}",
        "hydra.sweeper.n_trials=8",
        "hydra/launcher=joblib",
        "hydra.sweeper.shares=2",
    )
    assert outcome.code == 0, outcome.err
    assert len(table()) == 8 and table()["model.width"].map(parameters).max() <= LIMIT


LIMITED = f"hydra.sweeper.constraints={{parameters:{LIMIT}}}"
MISTAKES: dict[tuple[str, ...], Sequence[str]] = {
    ("hydra.sweeper.constraints={seconds:3}",): ["seconds: is not known", "parameters, steps"],
    ("hydra.sweeper.constraints={parameters:0}",): ["hydra.sweeper.constraints.parameters=0"],
    ("hydra.sweeper.constraints={parameters:few}",): ["hydra.sweeper.constraints.parameters=few"],
    ("hydra.sweeper.constraints=3",): ["hydra.sweeper.constraints=3"],
    ("hydra.sweeper.constraints={parameters:100}",): ["constraints: allows none of 1,000 random"],
    (LIMITED, "hydra.sweeper.points=[{model.width:512}]"): [
        "hydra.sweeper.points: parameters = 535,818 exceeds"
    ],
    (LIMITED, "hydra/sweeper/sampler=cmaes"): ["needs hydra/sweeper/sampler=tpe, gp"],
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line(mistake: tuple[str, ...], tiny: Command) -> None:
    outcome = tiny("-m", "name=a", RATE, WIDTH, *mistake)
    assert outcome.code == 1, outcome.out
    assert all(text in outcome.err for text in MISTAKES[mistake]), outcome.err
    assert outcome.err.count("\n") == 1 and not Path("multirun").exists()


def test_no_point_of_a_grid(tiny: Command) -> None:
    outcome = tiny("-m", "model.width=64,128", "hydra.sweeper.constraints={parameters:100}")
    assert outcome.code == 1 and "constraints: allows none of the 2 points" in outcome.err
    assert not os.listdir()


def test_an_application_tells_its_figures(tmp_path: Path, app: Shell) -> None:
    head = (
        "from fmnist_sweep.sweep import Task, sweeps\n"
        "class Sized(Task):\n"
        "    figures = ('size',)\n"
        "    def known_figures(self, config):\n"
        "        return {'size': config.n**2}\n"
    )
    write(tmp_path, "return cfg.lr * cfg.n", head)
    limit = "hydra.sweeper.constraints={size:20}"
    unknown = app(*STUDY, "n=1,2,3,4,5,6", limit)
    assert unknown.returncode == 1 and "tells nothing beforehand" in unknown.stderr
    script = (tmp_path / "app.py").read_text()
    (tmp_path / "app.py").write_text(script.replace("def main", "@sweeps(Sized())\ndef main"))
    done = app(*STUDY, "n=1,2,3,4,5,6", limit)
    assert done.returncode == 0, done.stderr
    assert list(pd.read_csv(tmp_path / "out/sweep.csv").sort_values("trial").n) == [1, 2, 3, 4]
