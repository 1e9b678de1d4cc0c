"""Plots of a sweep's keys: slices, grids and parallel coordinates."""

from collections.abc import Sequence
from typing import Any

from fmnist_sweep.base.figures import Axes, Figure, as_label, ticker
from fmnist_sweep.results import series, swept
from fmnist_sweep.results.metrics import Measure
from fmnist_sweep.results.parallel import MIDDLE, TOP, Line, ParallelAxis
from fmnist_sweep.results.plot_style import BLUE, GREY, VERMILION, new_figure, scatter
from fmnist_sweep.results.swept import Axis
from fmnist_sweep.results.tables import Run


def slices(runs: Sequence[Run]) -> Figure:
    """Plot the objective against each swept key."""
    keys = swept.axes(runs)
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(3.8 * columns + 0.6, 3.4 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, axis in zip(panels, keys):
        scatter(axes, runs, lambda run, a=axis: a.place(run.params.get(a.key)))  # type: ignore[misc]
        _format_axis(axes, axis)
        axes.grid(alpha=0.3)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize="small", loc="best")
    figure.supylabel(series.measures(runs)[0].label, fontsize="medium")
    return figure


def _format_axis(axes: Axes, axis: Axis) -> None:
    """Set the scale, ticks and label of an x axis that shows a swept key."""
    target = axes.xaxis
    if axis.kind == "log":
        axes.set_xscale("log")
    if axis.kind == "category":
        target.set_major_locator(ticker.FixedLocator(list(range(len(axis.choices)))))
        target.set_major_formatter(ticker.FuncFormatter(lambda v, _: _text(axis.choices[round(v)])))
        axes.margins(0.2)
    elif 0 < len(axis.choices) <= 8:
        target.set_major_locator(ticker.FixedLocator(axis.choices))
        target.set_minor_locator(ticker.NullLocator())
        target.set_major_formatter(ticker.FuncFormatter(lambda v, _: _text(v)))
    elif axis.kind != "log":
        target.set_major_locator(ticker.MaxNLocator(4))
    axes.set_xlabel(as_label(axis.key))


def _text(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return as_label(text if len(text) <= 16 else f"{text[:15]}…")


def grid(runs: Sequence[Run], keys: Sequence[Axis], cells: Sequence[swept.Cell]) -> Figure:
    """Plot a grid as `swept.grid` returns it: error bars over one key, a heat map over two."""
    measure = series.measures(runs)[0]
    if len(keys) == 2:
        return _heat(keys, cells, measure)
    figure, axes = new_figure()
    x = [cell.where[0] for cell in cells]
    y = [measure.scale * cell.mean for cell in cells]
    spread = [measure.scale * (cell.spread or 0.0) for cell in cells]
    style = "o" if keys[0].kind == "category" else "o-"
    axes.errorbar(x, y, yerr=spread if any(spread) else None, fmt=style, color=BLUE, capsize=4)
    _format_axis(axes, keys[0])
    n = max(cell.n for cell in cells)
    axes.set_ylabel(measure.label)
    axes.set_title(
        f"mean ± standard deviation, n = {n}" if n > 1 else "one run each", fontsize="medium"
    )
    return figure


def _heat(keys: Sequence[Axis], cells: Sequence[swept.Cell], measure: Measure) -> Figure:
    columns, rows = ([float(key.place(c) or 0) for c in key.choices] for key in keys)
    figure, axes = new_figure(1.6 + 0.95 * len(columns) + 1.2, max(3.6, 1.4 + 0.6 * len(rows)))
    values = [[float("nan")] * len(columns) for _ in rows]
    for cell in cells:
        values[rows.index(cell.where[1])][columns.index(cell.where[0])] = measure.scale * cell.mean
    better = measure.direction == "maximize"
    image = axes.imshow(
        values, cmap="cividis" if better else "cividis_r", aspect="auto", origin="lower"
    )
    middle = sum(image.get_clim()) / 2
    for cell in cells:
        shown = measure.scale * cell.mean
        dark = (shown < middle) == better
        spread = f"\n±{measure.scale * cell.spread:.2g}" if cell.spread is not None else ""
        place = columns.index(cell.where[0]), rows.index(cell.where[1])
        axes.text(
            *place,
            f"{shown:.4g}{spread}",
            ha="center",
            va="center",
            color="white" if dark else "black",
        )
    axes.set_xticks(range(len(columns)), [_text(c) for c in keys[0].choices])
    axes.set_yticks(range(len(rows)), [_text(c) for c in keys[1].choices])
    axes.set(xlabel=as_label(keys[0].key), ylabel=as_label(keys[1].key))
    axes.grid(visible=False)
    figure.colorbar(image, label=measure.label)
    return figure


def parallel(parallel_axes: Sequence[ParallelAxis], lines: Sequence[Line]) -> Figure:
    """Plot parallel coordinates, with the best tenth and the better half of the trials marked."""
    figure = Figure(figsize=(2.2 * len(parallel_axes) + 1.2, 4.8), dpi=110)
    axes = figure.add_axes((0.08, 0.1, 0.82, 0.76))
    axes.set_axis_off()
    axes.set_ylim(0, 1)
    groups: tuple[tuple[float, float, dict[str, Any], str], ...] = (
        (MIDDLE, 1.0, {"color": GREY, "alpha": 0.5, "linewidth": 0.9}, "others"),
        (TOP, MIDDLE, {"color": BLUE, "alpha": 0.7, "linewidth": 1.1}, "better half"),
        (0.0, TOP, {"color": VERMILION, "linewidth": 1.8}, "best tenth"),
    )
    for low, high, style, name in groups:
        axes.plot([], [], label=name, **style)
        for line in lines:
            if low <= line.rank < high:
                places = [float("nan") if place is None else place for place in line.places]
                axes.plot(range(len(places)), places, **style)
    for position, axis in enumerate(parallel_axes):
        axes.plot([position, position], [0, 1], color="black", linewidth=1)
        axes.text(
            position, 1.06, as_label(axis.name.replace(", ", ",\n")), ha="center", va="bottom"
        )
        last = position == len(parallel_axes) - 1
        for place, value in axis.ticks:
            axes.text(
                position + (0.04 if last else -0.04),
                place,
                _text(value),
                va="center",
                ha="left" if last else "right",
                fontsize="small",
                bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
            )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=3, frameon=False)
    return figure
