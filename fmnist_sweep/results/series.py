"""The numbers behind a sweep's pictures; nothing here draws."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from fmnist_sweep.results.metrics import Measure, direction
from fmnist_sweep.results.ranking import pareto, ranked
from fmnist_sweep.results.record import step_number
from fmnist_sweep.results.tables import Run


def measures(runs: Sequence[Run]) -> list[Measure]:
    """Return the measures of the sweep's objectives."""
    return [Measure(n, d) for n, d in zip(runs[0].objective, runs[0].direction)]


def best(runs: Sequence[Run]) -> Run | None:
    """Return the first run of the ranking, or None if no run is complete."""
    first = ranked(runs)[0] if runs else None
    return first if first and first.state == "COMPLETE" else None


def baseline(runs: Sequence[Run]) -> Run | None:
    """Return the first run of the default configuration, or None; a seed sweep has several."""
    return next((run for run in runs if run.default), None)


def number(value: Any) -> float | None:
    """Return a finite number as a float, and None for everything else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


def objective(run: Run, index: int = 0) -> float | None:
    """Return the value of one of a run's objectives; None if the run failed or it is not finite."""
    if run.state == "FAILED":
        return None
    return number(run.values[index]) if index < len(run.values) else None


def running_best(runs: Sequence[Run]) -> list[float | None]:
    """Return the best value of complete trials so far, by trial; None before the first."""
    sign = 1 if runs[0].direction[0] == "maximize" else -1
    found: list[float | None] = []
    so_far: float | None = None
    for run in runs:
        value = objective(run) if run.state == "COMPLETE" else None
        if value is not None and (so_far is None or sign * value > sign * so_far):
            so_far = value
        found.append(so_far)
    return found


def front(runs: Sequence[Run]) -> list[Run]:
    """Return the Pareto front ordered by the first objective; empty unless there are two."""
    if len(runs[0].objective) != 2:
        return []
    return sorted(pareto(runs), key=lambda run: objective(run) or 0.0)


def window(values: Sequence[float], direction: str, *included: float) -> tuple[float, float]:
    """Return the range of an axis, with outliers on the bad side cut off.

    Args:
        values: finite, at least one.
        direction: minimize or maximize; the good end is never cut.
        included: values that the range must contain.

    Returns:
        Low and high, each with a margin of a twentieth of the range.
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
    low, high = min([low, *included]), max([high, *included])
    margin = (high - low) / 20 or abs(high) / 20 or 1.0
    return low - margin, high + margin


# The metrics of this package's training, in the order of their plots.
_USUAL = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")
_NO_METRICS = ("epoch", "step", "lr", "seconds")
MOST_CURVES = 12


def curve_metrics(runs: Sequence[Run]) -> dict[str, str]:
    """Return at most `MOST_CURVES` metrics of the runs' histories, each with its direction.

    The usual metrics come first, then the sweep's objectives.
    """
    ends = (row for run in runs if run.history for row in (run.history[0], run.history[-1]))
    reported = dict.fromkeys(name for row in ends for name in row)
    objectives = dict(zip(runs[0].objective, runs[0].direction)) if runs else {}
    ordered = dict.fromkeys((*_USUAL, *objectives, *reported))
    names = [name for name in ordered if name in reported and name not in _NO_METRICS]
    return {name: objectives.get(name) or direction(name) for name in names[:MOST_CURVES]}


def curve(run: Run, metric: str) -> tuple[list[int], list[float]]:
    """Return a run's steps and the finite values of a metric at them, accuracies in per cent."""
    scale = Measure(metric, "").scale
    points = [(step_number(row), scale * row.get(metric, math.nan)) for row in run.history]
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in finite], [value for _, value in finite]


def curve_window(runs: Sequence[Run], metric: str) -> tuple[float, float] | None:
    """Return the axis range for a metric's curves, or None without values.

    The range contains the whole curves of the best trial and of the baseline.
    """
    values = [v for run in runs if run.state != "FAILED" for v in curve(run, metric)[1]]
    if not values:
        return None
    marked = [run for run in (best(runs), baseline(runs)) if run]
    included = [value for run in marked for value in curve(run, metric)[1]]
    return window(values, curve_metrics(runs)[metric], *included)


def objective_window(runs: Sequence[Run], index: int = 0) -> tuple[float, float] | None:
    """Return the axis range for an objective, accuracies in per cent, or None without values."""
    scale = measures(runs)[index].scale
    known = [(run, objective(run, index)) for run in runs]
    values = [scale * value for _, value in known if value is not None]
    if not values:
        return None
    included = [scale * value for run, value in known if value is not None and run.default]
    return window(values, runs[0].direction[index], *included)
