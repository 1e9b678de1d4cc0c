"""Parallel coordinates: each trial as a line over its keys and its objective."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fmnist_sweep.results import series, swept
from fmnist_sweep.results.tables import Run

MOST_TICKS = 8
NEAREST = 0.06  # apart; ticks any closer would run together
TOP, MIDDLE = 0.1, 0.5  # shares of the complete trials that are drawn as the best and the better


@dataclass(frozen=True)
class Upright:
    """One upright axis: ticks as positions in [0, 1] with the value that stands there."""

    name: str
    ticks: list[tuple[float, Any]]


@dataclass(frozen=True)
class Line:
    """A trial: its position in [0, 1] on each upright, None where it has no value.

    rank: share of the complete trials that are better, in [0, 1).
    """

    run: Run
    places: list[float | None]
    rank: float


def lines(runs: Sequence[Run]) -> tuple[list[Upright], list[Line]]:
    """The uprights, the objective last, and the complete trials, worst first.

    Empty for fewer than two swept keys: then a slice shows the same.
    """
    complete = [r for r in runs if r.state == "COMPLETE" and series.objective(r) is not None]
    keys = swept.axes(complete)
    shown = series.objective_window(complete) if complete else None
    if len(keys) < 2 or shown is None:
        return [], []
    ranges = {axis.key: _range(axis, complete) for axis in keys}
    measure = series.measures(runs)[0]
    low, high = shown
    goal = swept.Axis(measure.label, "linear", [])
    uprights = [Upright(axis.key, _ticks(axis, *ranges[axis.key])) for axis in keys]
    uprights.append(Upright(measure.label, _ticks(goal, low, high)))
    sign = 1 if measure.direction == "maximize" else -1
    ordered = sorted(complete, key=lambda run: sign * (series.objective(run) or 0.0))
    found = []
    for position, run in enumerate(ordered):
        places = [
            _place(axis, axis.place(run.params.get(axis.key)), *ranges[axis.key]) for axis in keys
        ]
        value = measure.scale * (series.objective(run) or 0.0)
        rank = 1 - (position + 1) / len(ordered)
        found.append(
            Line(run, [*places, _place(goal, min(max(value, low), high), low, high)], rank)
        )
    return uprights, found


def _range(axis: swept.Axis, runs: Sequence[Run]) -> tuple[float, float]:
    if axis.kind == "category":
        return -0.5, len(axis.choices) - 0.5
    places = [p for run in runs if (p := axis.place(run.params.get(axis.key))) is not None]
    return min(places), max(places)


def _place(axis: swept.Axis, value: float | None, low: float, high: float) -> float | None:
    """Where a value stands between the ends, in [0, 1]."""
    if value is None:
        return None
    if axis.kind == "log":
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _ticks(axis: swept.Axis, low: float, high: float) -> list[tuple[float, Any]]:
    if axis.kind == "category":
        values: list[Any] = axis.choices[:20]
        return [(_place(axis, i, low, high) or 0.0, v) for i, v in enumerate(values)]
    if 0 < len(axis.choices) <= MOST_TICKS:
        named = [(_place(axis, v, low, high) or 0.0, v) for v in axis.choices]
        if all(after[0] - before[0] > NEAREST for before, after in pairwise(named)):
            return named
    steps = [step / 4 for step in range(5)]
    if axis.kind == "log":
        return [(s, float(f"{low * (high / low) ** s:.2g}")) for s in steps]
    return [(s, float(f"{low + s * (high - low):.4g}")) for s in steps]
