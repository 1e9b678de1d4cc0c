"""The swept keys as axes of plots, and grids over one or two keys."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fmnist_sweep.results.series import number, objective
from fmnist_sweep.results.tables import Run

GRID_VALUES = 12  # a key with more distinct values was searched, not swept as a grid
LOG_RATIO = 20  # an axis is logarithmic if its greatest value is this many times its least


@dataclass(frozen=True)
class Axis:
    """A swept key as an axis.

    kind: linear, log or category.
    choices: a category's values in order of appearance; of a numeric key, the distinct values
        ascending, or none if there are more than `GRID_VALUES`.
    """

    key: str
    kind: str
    choices: list[Any]

    def place(self, value: Any) -> float | None:
        """Return a number itself, and a category's position from 0; None for any other value."""
        if self.kind == "category":
            text = str(value)
            return float(self.choices.index(text)) if text in self.choices else None
        return number(value)


def axes(runs: Sequence[Run]) -> list[Axis]:
    """Return the swept keys with more than one value among the runs that have an objective."""
    shown = [run for run in runs if objective(run) is not None]
    keys = dict.fromkeys(key for run in shown for key in run.params)
    made = (_axis(key, [r.params[key] for r in shown if key in r.params]) for key in keys)
    return [axis for axis, values in made if values > 1]


def _axis(key: str, values: Sequence[Any]) -> tuple[Axis, int]:
    """Return an axis and the number of its distinct values."""
    if any(number(value) is None for value in values):
        choices = list(dict.fromkeys(str(value) for value in values))
        return Axis(key, "category", choices), len(choices)
    distinct = sorted({float(value) for value in values})
    log = distinct[0] > 0 and (distinct[-1] / distinct[0] >= LOG_RATIO or _is_geometric(distinct))
    shown: list[Any] = [int(v) if v.is_integer() and v < 1e15 else v for v in distinct]
    few = shown if len(shown) <= GRID_VALUES else []
    return Axis(key, "log" if log else "linear", few), len(distinct)


def _is_geometric(values: Sequence[float]) -> bool:
    """Return whether three or more values have a constant ratio, such as 16, 32, 64."""
    ratios = [after / before for before, after in pairwise(values)]
    return 2 <= len(ratios) < GRID_VALUES and max(ratios) < 1.01 * min(ratios)


@dataclass(frozen=True)
class Cell:
    """The complete runs at a point of a grid.

    where: the point's places on the grid's axes.
    spread: the sample standard deviation over seeds or repeats; None for a single run.
    n: the number of seeds or repeats.
    """

    where: tuple[Any, ...]
    mean: float
    spread: float | None
    n: int


def grid(runs: Sequence[Run]) -> tuple[list[Axis], list[Cell]] | None:
    """Return a grid over one or two keys with a few values each, or None if the sweep is not one.

    A swept seed is not an axis: the runs of several seeds are the repeats of a point.
    """
    found = [axis for axis in axes(runs) if axis.key != runs[0].seed_key]
    if len(found) not in (1, 2) or any(not 2 <= len(a.choices) <= GRID_VALUES for a in found):
        return None
    points: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.state == "COMPLETE" and objective(run) is not None:
            where = tuple(axis.place(run.params.get(axis.key)) for axis in found)
            points.setdefault(where, []).append(run)
    whole = [where for where in points if None not in where]  # conditional keys may be missing
    cells = [_cell(where, points[where]) for where in sorted(whole)]
    full = math.prod(len(axis.choices) for axis in found)
    # A random search that draws few distinct values leaves most points of the grid empty.
    return (found, cells) if cells and len(points) > full / 2 else None


def _cell(where: tuple[Any, ...], runs: Sequence[Run]) -> Cell:
    values = [value for run in runs if (value := objective(run)) is not None]
    if len(values) > 1:
        return Cell(where, statistics.fmean(values), statistics.stdev(values), len(values))
    name = runs[0].objective[0]
    repeats = runs[0].summary.get("repeats") or 1
    return Cell(where, values[0], number(runs[0].summary.get(f"{name}_std")), int(repeats))
