"""What a sweep's pictures show, as plain numbers: nothing here draws."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from fmnist_sweep.results.metrics import Measure, direction
from fmnist_sweep.results.ranking import pareto, ranked
from fmnist_sweep.results.record import step_of
from fmnist_sweep.results.tables import Run


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
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond all floats
        return None


def objective(run: Run, index: int = 0) -> float | None:
    """The value of one of a run's objectives, where it did not fail and has a finite one."""
    if run.state == "FAILED":
        return None
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


# Of what our own training reports, in the order shown.
_USUAL = ("val_accuracy", "val_loss", "train_accuracy", "train_loss")
_NO_METRICS = ("epoch", "step", "lr", "seconds")
MOST_CURVES = 12


def curve_metrics(runs: Sequence[Run]) -> dict[str, str]:
    """The metrics of the runs' histories, each with its direction; at most twelve.

    What the sweep optimises comes first.
    """
    ends = (row for run in runs if run.history for row in (run.history[0], run.history[-1]))
    reported = dict.fromkeys(name for row in ends for name in row)
    objectives = dict(zip(runs[0].objective, runs[0].direction)) if runs else {}
    ordered = dict.fromkeys((*_USUAL, *objectives, *reported))
    names = [name for name in ordered if name in reported and name not in _NO_METRICS]
    return {name: objectives.get(name) or direction(name) for name in names[:MOST_CURVES]}


def curve(run: Run, metric: str) -> tuple[list[int], list[float]]:
    """A run's steps and a metric at each, as shown (accuracies in per cent), finite ones only."""
    scale = Measure(metric, "").scale
    points = [(step_of(row), scale * row.get(metric, math.nan)) for row in run.history]
    finite = [(epoch, value) for epoch, value in points if math.isfinite(value)]
    return [epoch for epoch, _ in finite], [value for _, value in finite]


def curve_window(runs: Sequence[Run], metric: str) -> tuple[float, float] | None:
    """The range in which a metric's curves are shown; None where there are none.

    The best trial and the baseline are always whole.
    """
    values = [v for run in runs if run.state != "FAILED" for v in curve(run, metric)[1]]
    if not values:
        return None
    marked = [run for run in (best(runs), baseline(runs)) if run]
    must = [value for run in marked for value in curve(run, metric)[1]]
    return window(values, curve_metrics(runs)[metric], *must)


def objective_window(runs: Sequence[Run], index: int = 0) -> tuple[float, float] | None:
    """The range in which the objective of complete and pruned runs is shown, scaled as shown."""
    scale = measures(runs)[index].scale
    known = [(run, objective(run, index)) for run in runs]
    values = [scale * value for _, value in known if value is not None]
    if not values:
        return None
    must = [scale * value for run, value in known if value is not None and run.default]
    return window(values, runs[0].direction[index], *must)
