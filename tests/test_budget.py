"""When a sweep ends before its trials: by time, by epochs, or as more trials are not worth it."""

import re
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fmnist_sweep.results import record
from tests.conftest import SMALL, Command

RATE = "optimizer.lr=tag(log,interval(1e-5,1e-1))"


def table(name: str = "a") -> pd.DataFrame:
    return pd.read_csv(f"multirun/{name}/sweep.csv")


def test_a_value_that_is_good_enough_ends_a_sweep(tiny: Command) -> None:
    outcome = tiny("-m", "name=a", RATE, "hydra.sweeper.stop.target=0.9")
    assert outcome.code == 0, outcome.err
    assert (
        "Ended with 19 trials left. hydra.sweeper.stop.target=0.9: val_accuracy reached 1.0000"
        in (outcome.out)
    )
    assert table().objective.tolist() == [1.0]
    again = tiny("-m", "name=a", RATE, "hydra.sweeper.stop.target=0.9")
    assert again.code == 0 and len(table()) == 1
    # Without the rule the same sweep goes on.
    assert tiny("-m", "name=a", RATE).code == 0 and len(table()) == 20


def test_trials_in_a_row_without_a_better_one_end_a_sweep(tiny: Command) -> None:
    order = "optimizer.lr=0.0001,0.01,0.003,0.03,0.1,0.00003,0.001"
    outcome = tiny("-m", "name=a", order, "hydra.sweeper.stop.patience=3")
    assert outcome.code == 0, outcome.err
    best = table().objective.cummax()
    # The third is the best of six; the seventh, the best of all, is not tried.
    assert len(table()) == 6 and best.idxmax() == 2
    assert "3 trials were no better than trial 2 with val_accuracy" in outcome.out


def test_minimised_values_end_a_sweep_too(tiny: Command) -> None:
    rules = ("hydra.sweeper.direction=minimize", "hydra.sweeper.stop.target=0.5")
    assert tiny("-m", "name=a", "optimizer.lr=0.001,0.003,0.1,0.0001", *rules).code == 0
    assert len(table()) == 3


def test_a_small_regret_ends_a_sweep(tiny: Command) -> None:
    search = ("-m", RATE, "hydra.sweeper.n_trials=30")
    outcome = tiny(*search, "name=a", "hydra.sweeper.stop.regret=0.5")
    assert outcome.code == 0, outcome.err
    assert 20 <= len(table()) < 30 and "a better configuration would gain at most" in outcome.out
    assert tiny(*search, "name=b", "hydra.sweeper.stop.regret=1e-9").code == 0
    assert len(table("b")) == 30


def test_trained_epochs_end_a_sweep(fmnist_train: Command) -> None:
    sweep = ("-m", "name=a", *SMALL, "seed=range(9)", "hydra.sweeper.n_jobs=1")
    outcome = fmnist_train(*sweep, "hydra.sweeper.max_epochs=5")
    assert outcome.code == 0, outcome.err
    # A third trial begins at four epochs, and no fourth at six.
    assert table().epochs.tolist() == [2, 2, 2] and "Ended with 6 trials left" in outcome.out
    assert fmnist_train(*sweep, "hydra.sweeper.max_epochs=8").code == 0
    assert len(table()) == 4


@pytest.mark.parametrize("launcher", ["stacked", "basic"])
def test_time_ends_a_sweep_and_its_running_trials(launcher: str, fmnist_train: Command) -> None:
    long = ("trainer.epochs=2000", "data.train_size=640", "data.val_size=100")
    sweep = ("-m", "name=a", *long, "seed=0,1,2,3", f"hydra/launcher={launcher}")
    began = time.monotonic()
    outcome = fmnist_train(*sweep, "hydra.sweeper.timeout=20")
    assert outcome.code == 0, outcome.err
    assert time.monotonic() - began < 60
    assert "hydra.sweeper.timeout=20: the time is used" in outcome.out or len(table()) == 4
    assert set(table().state) == {"PRUNED"} and table().epochs.min() >= 1
    curve = record.read_history(Path("multirun/a/0"))
    assert table().val_accuracy[0] == curve[-1]["val_accuracy"]
    refused = fmnist_train(*sweep, "hydra.sweeper.timeout=20")
    used = re.match(r"hydra.sweeper.timeout=20: of these seconds, (\d+) were", refused.err)
    assert refused.code == 1 and used and 20 <= int(used[1]) < 60
    assert refused.err.count("\n") == 1


def test_points_by_hand_come_first(tiny: Command) -> None:
    points = "hydra.sweeper.points=[{optimizer.lr:0.02},{data.batch_size:64,optimizer.lr:0.005}]"
    search = ("-m", "name=a", RATE, "data.batch_size=16,32,64", "hydra.sweeper.n_trials=4", points)
    outcome = tiny(*search)
    assert outcome.code == 0, outcome.err
    first = table()[["optimizer.lr", "data.batch_size"]].values.tolist()[:3]
    assert first == [[0.02, 32], [0.005, 64], [0.001, 32]]


MISTAKES: dict[tuple[str, ...], str] = {
    ("hydra.sweeper.points=[{model.width:64}]",): "points[0]: model.width is not searched",
    ("hydra.sweeper.points=[{optimizer.lr:1.0}]",): "points[0]: optimizer.lr=1.0: must be of",
    ("hydra.sweeper.points=[{optimizer.lr:fast}]",): "points[0]: optimizer.lr=fast: must be of",
    ("hydra.sweeper.points=3",): "hydra.sweeper.points=3",
    ("hydra.sweeper.timeout=0",): "hydra.sweeper.timeout=0: ",
    ("hydra.sweeper.timeout=0.01",): "hydra.sweeper.timeout=0.01: of these seconds, 0 were used",
    ("hydra.sweeper.max_epochs=0",): "hydra.sweeper.max_epochs=0",
    ("hydra.sweeper.stop.patience=0",): "hydra.sweeper.stop.patience=0",
    ("hydra.sweeper.stop.regret=-1",): "hydra.sweeper.stop.regret=-1",
    ("+hydra.sweeper.stop.best=1",): "hydra.sweeper.stop.best",
    (
        "hydra.sweeper.objective=[val_loss,seconds]",
        "hydra.sweeper.stop.target=0.1",
    ): "hydra.sweeper.stop: its rules need a single objective",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line(mistake: tuple[str, ...], tiny: Command) -> None:
    outcome = tiny("-m", "name=a", RATE, *mistake)
    assert outcome.code == 1 and MISTAKES[mistake] in outcome.err
    assert outcome.err.count("\n") == 1 and not list(Path().glob("multirun/a/[0-9]*"))


def test_a_grid_takes_no_points(tiny: Command) -> None:
    outcome = tiny("-m", "optimizer.lr=0.1,0.2", "hydra.sweeper.points=[{optimizer.lr:0.1}]")
    assert outcome.code == 1 and "points: a grid tries all of its points" in outcome.err


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_no_run_is_the_same_again(sampler: str, tiny: Command) -> None:
    def tried() -> list[Any]:
        runs = [Path("multirun/a", str(number)) for number in table().trial]
        configs = [record.read_yaml(run / ".hydra/config.yaml") for run in runs]
        return [(c["optimizer"]["lr"], c["trainer"]["epochs"], c["seed"]) for c in configs]

    search = (
        "-m",
        "name=a",
        "optimizer.lr=0.001,0.01",
        "trainer.epochs=int(interval(1,6))",
        "seed=7",
    )
    sampled = (f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=11")
    assert tiny(*search, *sampled[:1], "hydra.sweeper.n_trials=5").code == 0
    outcome = tiny(*search, *sampled)
    assert outcome.code == 0, outcome.err
    assert set(table().state) == {"COMPLETE"}
    assert len(set(tried())) == 11 and len({(lr, epochs) for lr, epochs, _ in tried()}) < 11
    for point in {(lr, epochs) for lr, epochs, _ in tried()}:
        seeds = [seed for lr, epochs, seed in tried() if (lr, epochs) == point]
        assert seeds == [7 + 10_000 * i for i in range(len(seeds))]
