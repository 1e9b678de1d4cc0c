"""The picture of a comparison."""

from collections.abc import Sequence

from fmnist_sweep.base.figures import Axes, Figure, as_label, png, ticker
from fmnist_sweep.results.compare import statistics
from fmnist_sweep.results.compare.findings import anytime
from fmnist_sweep.results.compare.sweep_table import SweepTable
from fmnist_sweep.results.metrics import Measure
from fmnist_sweep.results.plot_style import BLUE, GREEN, ORANGE, VERMILION

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, "#CC79A7", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")


def picture(tables: Sequence[SweepTable], confidence: float) -> bytes:
    """Plot the best so far over epochs and seconds, and the expected best of n trials.

    Args:
        tables: at least one; a budget that is unknown in one of them gets no panel.
        confidence: the level of the intervals, in (0, 1).

    Returns:
        The picture as PNG.
    """
    budgets = [
        b for b in ("epochs", "seconds") if all(table.rows[b].notna().any() for table in tables)
    ]
    count = len(budgets) + 1
    figure = Figure(figsize=(4.8 * count, 4.4), dpi=110, layout="constrained")
    panels = figure.subplots(1, count, squeeze=False)[0]
    measure = Measure(tables[0].objective, "maximize" if tables[0].maximize else "minimize")
    for axes, budget in zip(panels, budgets):
        _anytime(axes, tables, budget, measure)
    _best_of_n(panels[-1], tables, confidence, measure)
    for axes in panels:
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(measure.label)
    handles, labels = panels[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(tables)))
    return png(figure)


def _anytime(axes: Axes, tables: Sequence[SweepTable], budget: str, measure: Measure) -> None:
    for number, table in enumerate(tables):
        points = anytime(table, budget)
        end = float(table.rows[budget].sum())
        x = [*(spent for spent, _ in points), end]
        y = [measure.scale * value for _, value in (*points, points[-1])]
        axes.plot(
            x, y, drawstyle="steps-post", color=COLOURS[number % 6], linestyle=STYLES[number % 4]
        )
    units = {"epochs": "Epochs spent", "seconds": "Seconds spent"}
    axes.set_xlabel(units[budget])
    axes.set_title("Best so far", fontsize="medium")


def _best_of_n(
    axes: Axes, tables: Sequence[SweepTable], confidence: float, measure: Measure
) -> None:
    sign = 1 if measure.direction == "maximize" else -1
    for number, table in enumerate(tables):
        curve = statistics.best_of_n_curve((sign * table.complete["value"]).tolist(), confidence)
        colour = COLOURS[number % 6]
        scale = sign * measure.scale
        axes.plot(
            curve.n,
            scale * curve.value,
            color=colour,
            marker=MARKERS[number % 6],
            linestyle=STYLES[number % 4],
            markersize=4,
            label=as_label(table.name),
        )
        axes.fill_between(curve.n, scale * curve.low, scale * curve.high, color=colour, alpha=0.15)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel("n, complete trials drawn")
    axes.set_title("Expected best of n, with its interval", fontsize="medium")
