"""The colours and marks of all plots."""

from collections.abc import Callable, Sequence
from typing import Any

from fmnist_sweep.base.figures import Axes, Figure
from fmnist_sweep.results import series
from fmnist_sweep.results.tables import Run

# Okabe and Ito's colours. Line styles and markers distinguish the same lines in grey prints.
BLUE, VERMILION, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#8C8C8C"
STATES: dict[str, dict[str, Any]] = {
    "COMPLETE": {"color": BLUE, "marker": "o", "label": "complete"},
    "PAUSED": {"color": ORANGE, "marker": "D", "label": "paused"},
    "PRUNED": {"color": ORANGE, "marker": "^", "label": "pruned"},
    "FAILED": {"color": "black", "marker": "x", "label": "failed"},
}


def new_figure(width: float = 7.2, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def scatter(
    axes: Axes, runs: Sequence[Run], where: Callable[[Run], float | None], index: int = 0
) -> None:
    """Draw complete and pruned runs as points; values beyond the axis range lie on its edge.

    Args:
        axes: the y axis gets the range of the objective.
        runs: at least one.
        where: returns a run's x; None leaves the run out.
        index: the objective on the y axis.
    """
    measure = series.measures(runs)[index]
    shown = series.objective_window(runs, index)
    if shown is None:
        return
    low, high = shown
    axes.set_ylim(low, high)
    for state, style in STATES.items():
        points = [
            (x, min(max(measure.scale * y, low), high))
            for run in runs
            if run.state == state
            and (x := where(run)) is not None
            and (y := series.objective(run, index)) is not None
        ]
        if points:
            axes.plot(*zip(*points), linestyle="", markersize=5, alpha=0.75, clip_on=False, **style)
