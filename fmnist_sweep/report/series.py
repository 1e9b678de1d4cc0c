"""What a sweep's pictures show, as plain numbers: nothing here draws."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fmnist_sweep.report.ranking import pareto, ranked
from fmnist_sweep.report.tables import Run

GRID_VALUES = 12  # more distinct values than this are a search, not a grid
LOG_RATIO = 20  # a key whose values span more than this gets a logarithmic axis

NAMES = {
    "train_loss": "Training loss",
    "train_accuracy": "Training accuracy",
    "val_loss": "Validation loss",
    "val_accuracy": "Validation accuracy",
    "best_val_accuracy": "Best epoch's validation accuracy",
    "seconds": "Training time",
    "images_per_second": "Speed",
    "parameters": "Parameters",
}


@dataclass(frozen=True)
class Measure:
    """A quantity on an axis: its name, unit and which way is better.

    scale: what values in files are multiplied by to be shown (accuracies become per cent).
    """

    name: str
    direction: str

    @property
    def is_accuracy(self) -> bool:
        return self.name.endswith("accuracy")

    @property
    def scale(self) -> float:
        return 100.0 if self.is_accuracy else 1.0

    @property
    def unit(self) -> str:
        if self.is_accuracy:
            return "%"
        units = {"seconds": "s", "images_per_second": "images/s"}
        return units.get(self.name, "nats" if self.name.endswith("loss") else "")

    @property
    def label(self) -> str:
        """`Validation accuracy (%), higher is better`."""
        unit = f" ({self.unit})" if self.unit else ""
        better = "higher" if self.direction == "maximize" else "lower"
        return f"{NAMES.get(self.name, self.name)}{unit}, {better} is better"


def measures(runs: Sequence[Run]) -> list[Measure]:
    """What the sweep optimises."""
    return [Measure(n, d) for n, d in zip(runs[0].objective, runs[0].direction)]


def best(runs: Sequence[Run]) -> Run | None:
    """The first of the ranking; None where no run is complete."""
    first = ranked(runs)[0] if runs else None
    return first if first and first.state == "COMPLETE" else None


def baseline(runs: Sequence[Run]) -> Run | None:
    """The run of the default configuration; of several, as when seeds were swept, the first."""
    return next((run for run in runs if run.default), None)


def number(value: Any) -> float | None:
    """A finite number as a float, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def objective(run: Run, index: int = 0) -> float | None:
    """The value of one of a run's objectives, where it has a finite one."""
    return number(run.values[index]) if index < len(run.values) else None


def running_best(runs: Sequence[Run]) -> list[float | None]:
    """The best complete value so far, by trial; None before the first."""
    sign = 1 if runs[0].direction[0] == "maximize" else -1
    found: list[float | None] = []
    so_far: float | None = None
    for run in runs:
        value = objective(run) if run.state == "COMPLETE" else None
        if value is not None and (so_far is None or sign * value > sign * so_far):
            so_far = value
        found.append(so_far)
    return found


@dataclass(frozen=True)
class Axis:
    """A swept key as an axis.

    kind: linear, log or category.
    choices: what a category may be, in order of appearance; for numbers the distinct values of a
        grid, ascending, or none where there are too many to name each.
    """

    key: str
    kind: str
    choices: list[Any]

    def place(self, value: Any) -> float | None:
        """Where a value stands on the axis: itself, or a category's position from 0."""
        if self.kind == "category":
            text = str(value)
            return float(self.choices.index(text)) if text in self.choices else None
        return number(value)


def axes(runs: Sequence[Run]) -> list[Axis]:
    """The swept keys that took more than one value in runs that reached one."""
    shown = [run for run in runs if objective(run) is not None]
    keys = dict.fromkeys(key for run in shown for key in run.params)
    made = (_axis(key, [r.params[key] for r in shown if key in r.params]) for key in keys)
    return [axis for axis, values in made if values > 1]


def _axis(key: str, values: Sequence[Any]) -> tuple[Axis, int]:
    """An axis and how many distinct values it has."""
    if any(number(value) is None for value in values):
        choices = list(dict.fromkeys(str(value) for value in values))
        return Axis(key, "category", choices), len(choices)
    distinct = sorted({float(value) for value in values})
    log = distinct[0] > 0 and (distinct[-1] / distinct[0] >= LOG_RATIO or _is_geometric(distinct))
    shown: list[Any] = [int(v) if v.is_integer() and v < 1e15 else v for v in distinct]
    few = shown if len(shown) <= GRID_VALUES else []
    return Axis(key, "log" if log else "linear", few), len(distinct)


def _is_geometric(values: Sequence[float]) -> bool:
    """16, 32, 64: at least three values, each the same multiple of the one before."""
    ratios = [after / before for before, after in pairwise(values)]
    return 2 <= len(ratios) < GRID_VALUES and max(ratios) < 1.01 * min(ratios)


@dataclass(frozen=True)
class Cell:
    """All complete runs at one point of a grid.

    where: the point's values, by the grid's axes.
    spread: sample standard deviation over seeds or repeats; None for a single run.
    """

    where: tuple[Any, ...]
    mean: float
    spread: float | None
    n: int


def grid(runs: Sequence[Run]) -> tuple[list[Axis], list[Cell]] | None:
    """A grid of one or two keys with a few values each; None for anything else.

    A swept seed is no axis: its runs are the repeats of a point.
    """
    found = [axis for axis in axes(runs) if axis.key != "seed"]
    if len(found) not in (1, 2) or any(not 2 <= len(a.choices) <= GRID_VALUES for a in found):
        return None
    points: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.state == "COMPLETE" and objective(run) is not None:
            where = tuple(axis.place(run.params.get(axis.key)) for axis in found)
            points.setdefault(where, []).append(run)
    cells = [_cell(where, some) for where, some in sorted(points.items()) if None not in where]
    full = math.prod(len(axis.choices) for axis in found)
    # A search that happens to draw few values leaves most of the product empty.
    return (found, cells) if cells and len(points) > full / 2 else None


def _cell(where: tuple[Any, ...], runs: Sequence[Run]) -> Cell:
    values = [value for run in runs if (value := objective(run)) is not None]
    if len(values) > 1:
        return Cell(where, statistics.fmean(values), statistics.stdev(values), len(values))
    name = runs[0].objective[0]
    repeats = runs[0].summary.get("repeats") or 1
    return Cell(where, values[0], number(runs[0].summary.get(f"{name}_std")), int(repeats))


def front(runs: Sequence[Run]) -> list[Run]:
    """The Pareto front of two objectives, along the first; none for a single objective."""
    if len(runs[0].objective) != 2:
        return []
    return sorted(pareto(runs), key=lambda run: objective(run) or 0.0)


def window(values: Sequence[float], direction: str, *must: float) -> tuple[float, float]:
    """An axis' range that far-off bad values do not squash.

    Args:
        values: finite, at least one.
        direction: the good end is never cut.
        must: values that the range has to hold.

    Returns:
        Low and high, a twentieth wider than what is shown.
    """
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    if len(ordered) > 4:
        lower, _, upper = statistics.quantiles(ordered, n=4, method="inclusive")
        reach = 3 * (upper - lower)
        if direction == "maximize":
            low = max(low, lower - reach)
        else:
            high = min(high, upper + reach)
    low, high = min([low, *must]), max([high, *must])
    margin = (high - low) / 20 or abs(high) / 20 or 1.0
    return low - margin, high + margin


CURVES = {
    "val_accuracy": "maximize",
    "val_loss": "minimize",
    "train_accuracy": "maximize",
    "train_loss": "minimize",
}


def curve(run: Run, metric: str) -> tuple[list[int], list[float]]:
    """A run's epochs and a metric at each, as shown (accuracies in per cent), finite ones only."""
    scale = Measure(metric, "").scale
    points = [(r.epoch, scale * getattr(r, metric)) for r in run.history]
    finite = [(epoch, value) for epoch, value in points if math.isfinite(value)]
    return [epoch for epoch, _ in finite], [value for _, value in finite]


def curve_window(runs: Sequence[Run], metric: str) -> tuple[float, float] | None:
    """The range in which a metric's curves are shown; None where there are none.

    The best trial and the baseline are always whole.
    """
    values = [value for run in runs for value in curve(run, metric)[1]]
    if not values:
        return None
    marked = [run for run in (best(runs), baseline(runs)) if run]
    must = [value for run in marked for value in curve(run, metric)[1]]
    return window(values, CURVES[metric], *must)


def objective_window(runs: Sequence[Run], index: int = 0) -> tuple[float, float] | None:
    """The range in which the objective of complete and pruned runs is shown, scaled as shown."""
    scale = measures(runs)[index].scale
    known = [(run, objective(run, index)) for run in runs]
    values = [scale * value for _, value in known if value is not None]
    if not values:
        return None
    must = [scale * value for run, value in known if value is not None and run.default]
    return window(values, runs[0].direction[index], *must)
