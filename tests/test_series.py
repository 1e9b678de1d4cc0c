"""What a sweep's pictures show, checked through the data that they draw."""

import math
import random
from pathlib import Path
from typing import Any

import pytest

from fmnist_sweep.results import facts, parallel, series, swept
from fmnist_sweep.results.importance import importances
from fmnist_sweep.results.tables import Run, Sweep
from fmnist_sweep.results.timing import timing
from tests import sweeps
from tests.sweeps import trial


def read(folder: Path) -> list[Run]:
    sweep = Sweep(folder)
    sweep.update()
    return list(sweep.runs.values())


def written(folder: Path, *trials: dict[str, Any], **more: Any) -> list[Run]:
    return read(sweeps.write(folder / "sweep", trials, **more))


def test_running_best_counts_complete_trials_only(tmp_path: Path) -> None:
    runs = written(
        tmp_path, trial(None, "FAILED"), trial(0.7), trial(0.9, "PRUNED"), trial(0.6), trial(0.8)
    )
    assert series.running_best(runs) == [None, 0.7, 0.7, 0.7, 0.8]
    assert series.best(runs) is runs[4] and series.baseline(runs) is runs[0]


def test_running_best_of_what_is_minimised(tmp_path: Path) -> None:
    runs = written(
        tmp_path, trial(0.1), trial(0.3), trial(0.2), objective=["val_loss"], direction=["minimize"]
    )
    assert series.running_best(runs) == pytest.approx([0.9, 0.7, 0.7])
    assert series.measures(runs)[0].label == "Validation loss (nats), lower is better"


@pytest.mark.parametrize(
    ("values", "kind", "choices"),
    [
        ([0.0001, 0.001, 0.01], "log", [0.0001, 0.001, 0.01]),
        ([16, 32, 64], "log", [16, 32, 64]),
        ([64, 128, 192, 256], "linear", [64, 128, 192, 256]),
        (["sgd", "adam", "sgd"], "category", ["sgd", "adam"]),
        ([True, False], "category", ["True", "False"]),
        ([k / 20 for k in range(1, 21)], "log", []),
    ],
)
def test_axes(tmp_path: Path, values: list[Any], kind: str, choices: list[Any]) -> None:
    runs = written(tmp_path, *(trial(0.8, params={"key": value}) for value in values))
    (axis,) = swept.axes(runs)
    assert (axis.kind, axis.choices) == (kind, choices)


def test_a_grid_of_one_key_over_seeds_has_means_and_spreads(tmp_path: Path) -> None:
    rows = [(0.1, 0, 0.70), (0.1, 1, 0.74), (0.2, 0, 0.80), (0.2, 1, 0.80)]
    runs = written(tmp_path, *(trial(v, params={"lr": lr, "seed": s}) for lr, s, v in rows))
    found = swept.grid(runs)
    assert found is not None
    axes, cells = found
    assert [axis.key for axis in axes] == ["lr"]
    assert [cell.where for cell in cells] == [(0.1,), (0.2,)]
    assert [cell.mean for cell in cells] == pytest.approx([0.72, 0.80])
    assert cells[0].spread == pytest.approx(math.sqrt(2 * 0.02**2)) and cells[0].n == 2


def test_a_grid_takes_the_spread_of_repeats(tmp_path: Path) -> None:
    runs = written(
        tmp_path,
        trial(0.7, params={"lr": 0.1}, std=0.01, repeats=5),
        trial(0.8, params={"lr": 0.2}, std=0.02, repeats=5),
    )
    found = swept.grid(runs)
    assert found and [(c.spread, c.n) for c in found[1]] == [(0.01, 5), (0.02, 5)]


def test_a_search_is_no_grid(tmp_path: Path) -> None:
    rows = [trial(0.7, params={"a": k / 7, "b": k * k % 11}) for k in range(20)]
    assert swept.grid(written(tmp_path, *rows)) is None


def test_bad_values_do_not_squash_an_axis() -> None:
    values = [0.85, 0.86, 0.87, 0.88, 0.89, 0.1]
    low, high = series.window(values, "maximize")
    assert 0.7 < low < 0.85 and high > 0.89
    assert series.window(values, "maximize", 0.1)[0] < 0.1
    assert series.window([0.5], "maximize") == pytest.approx((0.475, 0.525))


def test_front_of_two_objectives(tmp_path: Path) -> None:
    runs = written(
        tmp_path,
        trial(0.7, values={"seconds": 1.0}),
        trial(0.9, values={"seconds": 3.0}),
        trial(0.6, values={"seconds": 2.0}),
        objective=["val_accuracy", "seconds"],
        direction=["maximize", "minimize"],
    )
    assert [run.trial for run in series.front(runs)] == [0, 1]


def test_time_adds_up(tmp_path: Path) -> None:
    runs = written(tmp_path, trial(0.7), trial(0.6, "PRUNED"), trial(0.8))
    found = timing(runs)
    assert found is not None
    # Each trial trains for 2 s and takes one more; one second lies between two.
    assert found.wall == pytest.approx(11) and sum(found.parts.values()) == pytest.approx(11)
    assert found.parts["epochs of pruned trials"] == pytest.approx(2)
    assert found.parts["between trials"] == pytest.approx(2)
    assert [n for _, n in found.done] == [1, 2, 3]
    assert found.per_minute == pytest.approx(60 * 3 / 11)


def test_schedule_has_every_part_of_a_trial(tmp_path: Path) -> None:
    pauses = [{"epochs": 1, "started": 1000.0, "ended": 1001.5}]
    runs = written(tmp_path, trial(0.7), trial(0.8, pauses=pauses), trial(0.6, "PRUNED"))
    found = timing(runs)
    assert found is not None
    # A trial begins four seconds after the one before and takes three; the second began earlier.
    assert found.schedule == [
        (1, 0.0, 1.5, 1, "PAUSED"),
        (0, 0.0, 3.0, 2, "COMPLETE"),
        (1, 4.0, 7.0, 2, "COMPLETE"),
        (2, 8.0, 11.0, 2, "PRUNED"),
    ]
    assert timing(runs[::2]).schedule == []  # type: ignore[union-attr]


def test_importances_find_the_key_that_matters(tmp_path: Path) -> None:
    dice = random.Random(0)
    rows = []
    for _ in range(40):
        lr, width = 10 ** dice.uniform(-4, -1), dice.choice([64, 128, 256])
        value = 0.9 - 0.1 * (math.log10(lr) + 3) ** 2
        params = {"lr": lr, "width": width, "optimizer": dice.choice(["adam", "sgd"])}
        rows.append(trial(value, params=params))
    shares = importances(written(tmp_path, *rows))
    assert next(iter(shares)) == "lr" and shares["lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(written(tmp_path / "few", *rows[:10])) == {}
    # A scheduler leaves few complete trials; the others count with their last value.
    ranked = sorted(rows, key=lambda row: -row["value"])
    stopped = [*ranked[:8], *({**row, "state": "PRUNED", "epochs": 1} for row in ranked[8:])]
    shares = importances(written(tmp_path / "stopped", *stopped))
    assert next(iter(shares)) == "lr" and shares["lr"] > 0.8


def test_parallel_lines_end_at_the_objective(tmp_path: Path) -> None:
    runs = written(
        tmp_path,
        trial(0.8, params={"a": 1, "b": "x"}),
        trial(0.9, params={"a": 2, "b": "y"}),
        trial(0.7, params={"a": 3, "b": "x"}),
    )
    axes, lines = parallel.lines(runs)
    assert [axis.name for axis in axes][:2] == ["a", "b"]
    assert [line.run.trial for line in lines] == [2, 0, 1]
    assert lines[-1].rank == 0 and lines[-1].places[0] == pytest.approx(0.5)
    assert lines[0].places[1] == lines[1].places[1] == pytest.approx(0.25)
    heights = [line.places[-1] for line in lines]
    assert heights == sorted(heights, key=lambda place: place or 0)


def test_facts_warn_of_selection_on_the_test_set(tmp_path: Path) -> None:
    runs = written(tmp_path, trial(0.7), data={"validation": "test"})
    rows = facts.facts(tmp_path / "sweep", runs)
    assert rows["Data"]["Selected on"] == facts.TEST_SELECTION
    assert rows["Budget"]["Epochs"] == "2" and rows["Environment"]["PyTorch"] == "2.14.1"
