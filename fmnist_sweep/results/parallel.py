"""Parallel coordinates: each trial is a line across its keys and its objective."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from fmnist_sweep.results import series, swept
from fmnist_sweep.results.tables import Run

MOST_TICKS = 8
NEAREST = 0.06  # least distance of two ticks, as a share of the axis, at which labels are legible
TOP, MIDDLE = 0.1, 0.5  # shares of the complete trials that are drawn as the best and the better


@dataclass(frozen=True)
class ParallelAxis:
    """A vertical axis.

    ticks: positions in [0, 1], each with its value.
    """

    name: str
    ticks: list[tuple[float, Any]]


@dataclass(frozen=True)
class Line:
    """A trial's line.

    places: the position in [0, 1] on each axis, None where the trial has no value.
    rank: the share of the complete trials that are better, in [0, 1).
    """

    run: Run
    places: list[float | None]
    rank: float


def lines(runs: Sequence[Run]) -> tuple[list[ParallelAxis], list[Line]]:
    """Return the axes, the objective last, and the lines of the complete trials, worst first.

    Both are empty for fewer than two swept keys, where a slice shows the same.
    """
    complete = [r for r in runs if r.state == "COMPLETE" and series.objective(r) is not None]
    keys = swept.axes(complete)
    shown = series.objective_window(complete) if complete else None
    if len(keys) < 2 or shown is None:
        return [], []
    ranges = {axis.key: _range(axis, complete) for axis in keys}
    measure = series.measures(runs)[0]
    low, high = shown
    objective = swept.Axis(measure.label, "linear", [])
    parallel_axes = [ParallelAxis(axis.key, _ticks(axis, *ranges[axis.key])) for axis in keys]
    parallel_axes.append(ParallelAxis(measure.label, _ticks(objective, low, high)))
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
            Line(run, [*places, _place(objective, min(max(value, low), high), low, high)], rank)
        )
    return parallel_axes, found


def _range(axis: swept.Axis, runs: Sequence[Run]) -> tuple[float, float]:
    if axis.kind == "category":
        return -0.5, len(axis.choices) - 0.5
    places = [p for run in runs if (p := axis.place(run.params.get(axis.key))) is not None]
    return min(places), max(places)


def _place(axis: swept.Axis, value: float | None, low: float, high: float) -> float | None:
    """Return a value's position between the ends of the axis, in [0, 1]."""
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
        ticks = [(_place(axis, v, low, high) or 0.0, v) for v in axis.choices]
        if all(after[0] - before[0] > NEAREST for before, after in pairwise(ticks)):
            return ticks
    steps = [step / 4 for step in range(5)]
    if axis.kind == "log":
        return [(s, float(f"{low * (high / low) ** s:.2g}")) for s in steps]
    return [(s, float(f"{low + s * (high - low):.4g}")) for s in steps]
