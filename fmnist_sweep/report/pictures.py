"""A sweep's pictures as PNG files: thin drawing of what `series` and `timing` have worked out."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fmnist_sweep.report import series
from fmnist_sweep.report.parallel import MIDDLE, TOP, Line, Upright
from fmnist_sweep.report.series import Axis, Measure
from fmnist_sweep.report.tables import Run
from fmnist_sweep.report.timing import Timing

# Okabe and Ito's colours; line styles and markers tell the same on grey paper.
BLUE, VERMILION, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#8C8C8C"
STATES: dict[str, dict[str, Any]] = {
    "COMPLETE": {"color": BLUE, "marker": "o", "label": "complete"},
    "PRUNED": {"color": ORANGE, "marker": "^", "label": "pruned"},
}


def png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def _figure(width: float = 7.2, height: float = 4.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def curves(runs: Sequence[Run]) -> Figure:
    """Validation and training curves of all runs, the best and the baseline on top."""
    figure = Figure(figsize=(11, 7.4), dpi=110, layout="constrained")
    marked = {id(run) for run in (series.best(runs), series.baseline(runs)) if run}
    for axes, (metric, direction) in zip(figure.subplots(2, 2).flat, series.CURVES.items()):
        for run in runs:
            if id(run) not in marked:
                style = ":" if run.state == "PRUNED" else "-"
                axes.plot(*series.curve(run, metric), style, color=GREY, alpha=0.6, linewidth=0.9)
        _marked_curves(axes, runs, metric)
        if shown := series.curve_window(runs, metric):
            axes.set_ylim(*shown)
        axes.set_xlabel("Epoch")
        axes.set_ylabel(Measure(metric, direction).label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        place = "lower right" if direction == "maximize" else "upper right"
        axes.legend(loc=place, fontsize="small", framealpha=0.85)
    return figure


def _marked_curves(axes: Axes, runs: Sequence[Run], metric: str) -> None:
    first, base = series.best(runs), series.baseline(runs)
    rest = len(runs) - len({id(run) for run in (first, base) if run})
    if rest:
        axes.plot([], [], color=GREY, label=f"{rest} other trials (dotted: pruned)")
    if base and base is not first:
        x, y = series.curve(base, metric)
        axes.plot(
            x,
            y,
            "--",
            color=BLUE,
            marker="s",
            markevery=_sparse(x),
            markersize=4,
            label=f"baseline (trial {base.trial})",
        )
    if first:
        x, y = series.curve(first, metric)
        also = ", the baseline" if first is base else ""
        axes.plot(
            x,
            y,
            color=VERMILION,
            marker="o",
            markevery=_sparse(x),
            markersize=4,
            linewidth=2,
            label=f"best (trial {first.trial}{also})",
        )


def _sparse(points: Sequence[Any]) -> int:
    """Every how many points a marker stands, so that they do not run together."""
    return max(1, len(points) // 12)


def history(runs: Sequence[Run]) -> Figure:
    """The objective of each trial and the best so far."""
    figure, axes = _figure()
    measure = series.measures(runs)[0]
    _scatter(axes, runs, lambda run: run.trial)
    trials = [run.trial for run in runs]
    steps = [float("nan") if v is None else measure.scale * v for v in series.running_best(runs)]
    axes.plot(trials, steps, color=VERMILION, drawstyle="steps-post", label="best so far")
    failed = [run.trial for run in runs if run.state == "FAILED"]
    if failed:
        low = axes.get_ylim()[0]
        axes.plot(failed, [low] * len(failed), "x", color="black", clip_on=False, label="failed")
    if base := series.baseline(runs):
        value = series.objective(base)
        if value is not None:
            axes.axhline(
                measure.scale * value, color=BLUE, linestyle="--", linewidth=1, label="baseline"
            )
    axes.set_xlabel("Trial, in the order begun")
    axes.set_ylabel(measure.label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize="small", loc="best")
    return figure


def _scatter(
    axes: Axes, runs: Sequence[Run], where: Callable[[Run], float | None], index: int = 0
) -> None:
    """Points of complete and pruned runs; those beyond the axis lie on its edge."""
    measure = series.measures(runs)[index]
    shown = series.objective_window(runs, index)
    if shown is None:
        return
    low, high = shown
    axes.set_ylim(low, high)
    for state, style in STATES.items():
        some = [
            (x, min(max(measure.scale * y, low), high))
            for run in runs
            if run.state == state
            and (x := where(run)) is not None
            and (y := series.objective(run, index)) is not None
        ]
        if some:
            axes.plot(*zip(*some), linestyle="", markersize=5, alpha=0.75, clip_on=False, **style)


def importances(shares: Mapping[str, float]) -> Figure:
    """A bar for each key."""
    figure, axes = _figure(height=1.2 + 0.45 * len(shares))
    names = list(shares)[::-1]
    bars = axes.barh(names, [100 * shares[name] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.set_xlim(0, 115 * max(shares.values()))
    axes.set_xlabel("Share of what separates the best quarter of the trials from all (%)")
    axes.grid(visible=False, axis="y")
    return figure


def slices(runs: Sequence[Run]) -> Figure:
    """The objective against each swept key."""
    keys = series.axes(runs)
    columns = min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(3.8 * columns + 0.6, 3.4 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, axis in zip(panels, keys):
        _scatter(axes, runs, lambda run, a=axis: a.place(run.params.get(a.key)))  # type: ignore[misc]
        _dress(axes, axis)
        axes.grid(alpha=0.3)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    panels[0].legend(fontsize="small", loc="best")
    figure.supylabel(series.measures(runs)[0].label, fontsize="medium")
    return figure


def _dress(axes: Axes, axis: Axis, which: str = "x") -> None:
    """Scale, ticks and name of an axis that shows a swept key."""
    target = axes.xaxis if which == "x" else axes.yaxis
    if axis.kind == "log":
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    if axis.kind == "category":
        target.set_major_locator(FixedLocator(list(range(len(axis.choices)))))
        target.set_major_formatter(FuncFormatter(lambda v, _: _text(axis.choices[round(v)])))
        axes.margins(0.2)
    elif 0 < len(axis.choices) <= 8:
        target.set_major_locator(FixedLocator(axis.choices))
        target.set_minor_locator(NullLocator())
        target.set_major_formatter(FuncFormatter(lambda v, _: _text(v)))
    # Matplotlib takes what stands between dollars for mathematics.
    axes.set(**{f"{which}label": axis.key.replace("$", r"\$")})


def _text(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return (text if len(text) <= 16 else f"{text[:15]}…").replace("$", r"\$")


def grid(runs: Sequence[Run]) -> Figure | None:
    """A line with error bars over one key, a heat map over two; None where there is no grid."""
    found = series.grid(runs)
    if found is None:
        return None
    keys, cells = found
    measure = series.measures(runs)[0]
    if len(keys) == 2:
        return _heat(keys, cells, measure)
    figure, axes = _figure()
    x = [cell.where[0] for cell in cells]
    y = [measure.scale * cell.mean for cell in cells]
    spread = [measure.scale * (cell.spread or 0.0) for cell in cells]
    style = "o" if keys[0].kind == "category" else "o-"
    axes.errorbar(x, y, yerr=spread if any(spread) else None, fmt=style, color=BLUE, capsize=4)
    _dress(axes, keys[0])
    n = max(cell.n for cell in cells)
    axes.set_ylabel(measure.label)
    axes.set_title(
        f"mean ± standard deviation, n = {n}" if n > 1 else "one run each", fontsize="medium"
    )
    return figure


def _heat(keys: Sequence[Axis], cells: Sequence[series.Cell], measure: Measure) -> Figure:
    columns, rows = ([float(key.place(c) or 0) for c in key.choices] for key in keys)
    figure, axes = _figure(1.6 + 0.95 * len(columns) + 1.2, 1.4 + 0.6 * len(rows))
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
    axes.set(xlabel=keys[0].key, ylabel=keys[1].key)
    axes.grid(visible=False)
    figure.colorbar(image, label=measure.label)
    return figure


def parallel(uprights: Sequence[Upright], lines: Sequence[Line]) -> Figure:
    """A line a trial over all keys, the best tenth and the better half told apart."""
    figure = Figure(figsize=(2.2 * len(uprights) + 1.2, 4.8), dpi=110)
    axes = figure.add_axes((0.08, 0.1, 0.82, 0.76))
    axes.set_axis_off()
    axes.set_ylim(0, 1)
    kinds: tuple[tuple[float, float, dict[str, Any], str], ...] = (
        (MIDDLE, 1.0, {"color": GREY, "alpha": 0.5, "linewidth": 0.9}, "others"),
        (TOP, MIDDLE, {"color": BLUE, "alpha": 0.7, "linewidth": 1.1}, "better half"),
        (0.0, TOP, {"color": VERMILION, "linewidth": 1.8}, "best tenth"),
    )
    for low, high, style, name in kinds:
        axes.plot([], [], label=name, **style)
        for line in lines:
            if low <= line.rank < high:
                places = [float("nan") if place is None else place for place in line.places]
                axes.plot(range(len(places)), places, **style)
    for position, upright in enumerate(uprights):
        axes.plot([position, position], [0, 1], color="black", linewidth=1)
        axes.text(position, 1.06, upright.name.replace(", ", ",\n"), ha="center", va="bottom")
        last = position == len(uprights) - 1
        for place, value in upright.ticks:
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


def front(runs: Sequence[Run]) -> Figure:
    """Two objectives and their Pareto front."""
    figure, axes = _figure()
    first, second = series.measures(runs)
    _scatter(axes, runs, lambda run: _scaled(run, 0, first), index=1)
    best = series.front(runs)
    xs, ys = ([_scaled(run, i, m) for run in best] for i, m in enumerate((first, second)))
    axes.plot(xs, ys, color=VERMILION, marker="D", markersize=5, label="Pareto front")
    if base := series.baseline(runs):
        axes.plot(
            [_scaled(base, 0, first)],
            [_scaled(base, 1, second)],
            "s",
            markersize=10,
            markerfacecolor="none",
            color="black",
            label="baseline",
        )
    axes.set(xlabel=first.label, ylabel=second.label)
    axes.legend(fontsize="small")
    return figure


def _scaled(run: Run, index: int, measure: Measure) -> float:
    value = series.objective(run, index)
    return float("nan") if value is None else measure.scale * value


def time(timing: Timing) -> Figure:
    """Where the time went, and how many trials had ended when."""
    figure = Figure(figsize=(11, 3.6), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
    names = list(reversed(timing.parts))
    bars = left.barh(names, [timing.parts[name] for name in names], color=BLUE)
    left.bar_label(bars, fmt="%.1f s", padding=3)
    left.set_xlim(0, 1.2 * max(timing.parts.values()))
    left.set_xlabel("Time spent (s)")
    minutes = [0.0, *(at / 60 for at, _ in timing.done)]
    right.plot(minutes, [0, *(n for _, n in timing.done)], color=BLUE, drawstyle="steps-post")
    right.set(xlabel="Time since the first trial began, without pauses (min)")
    right.set_ylabel("Trials ended")
    right.set_title(f"{timing.per_minute:.3g} trials a minute", fontsize="medium")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure
