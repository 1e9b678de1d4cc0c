"""Plots of a sweep; the numbers come from `series` and `timing`."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fmnist_sweep.base.figures import Axes, Figure, as_label, ticker
from fmnist_sweep.results import lineage, series
from fmnist_sweep.results.lineage import Descent
from fmnist_sweep.results.metrics import Measure
from fmnist_sweep.results.plot_style import BLUE, GREY, STATES, VERMILION, new_figure, scatter
from fmnist_sweep.results.tables import Run, step_name
from fmnist_sweep.results.timing import Part, Timing

MOST_NUMBERED = 60  # trials with numbers in the picture of the schedule


def curves(runs: Sequence[Run], copies: Collection[tuple[int, int]] = ()) -> Figure:
    """Plot the curves of all runs, with the best run and the baseline on top.

    Args:
        runs: the runs.
        copies: trials and the epochs after which they copied another trial's state.
    """
    metrics = series.curve_metrics(runs)
    rows = -(-len(metrics) // 2)
    figure = Figure(figsize=(11, 3.7 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).flatten()
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    marked = {id(run) for run in (series.best(runs), series.baseline(runs)) if run}
    for axes, (metric, direction) in zip(panels, metrics.items()):
        for run in runs:
            if id(run) not in marked:
                style = ":" if run.state in ("PAUSED", "PRUNED") else "-"
                axes.plot(*series.curve(run, metric), style, color=GREY, alpha=0.6, linewidth=0.9)
        _marked_curves(axes, runs, metric)
        _mark_copies(axes, runs, metric, copies)
        if shown := series.curve_window(runs, metric):
            axes.set_ylim(*shown)
        axes.set_xlabel(step_name(runs).capitalize())
        axes.set_ylabel(as_label(Measure(metric, direction).label))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        place = "lower right" if direction == "maximize" else "upper right"
        axes.legend(loc=place, fontsize="small", framealpha=0.85)
    return figure


def _marked_curves(axes: Axes, runs: Sequence[Run], metric: str) -> None:
    first, base = series.best(runs), series.baseline(runs)
    rest = len(runs) - len({id(run) for run in (first, base) if run})
    if rest:
        axes.plot([], [], color=GREY, label=f"{rest} other trials (dotted: stopped early)")
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


def _mark_copies(
    axes: Axes, runs: Sequence[Run], metric: str, copies: Collection[tuple[int, int]]
) -> None:
    """Mark the first epoch after each copy."""
    points = [
        (step, value)
        for run in runs
        for step, value in zip(*series.curve(run, metric))
        if (run.trial, step - 1) in copies
    ]
    if points:
        style: dict[str, Any] = {"color": "black", "markersize": 4, "zorder": 3}
        axes.plot(*zip(*points), ".", label="first epoch of a copy", **style)


def _sparse(points: Sequence[Any]) -> int:
    """Return the number of points per marker, so that markers do not overlap."""
    return max(1, len(points) // 12)


def history(runs: Sequence[Run]) -> Figure:
    """Plot each trial's objective and the best so far."""
    figure, axes = new_figure()
    measure = series.measures(runs)[0]
    scatter(axes, runs, lambda run: run.trial)
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
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.legend(fontsize="small", loc="best")
    return figure


def importances(shares: Mapping[str, float]) -> Figure:
    """Plot a bar for each key.

    Args:
        shares: by key, adding up to 1.
    """
    figure, axes = new_figure(height=1.2 + 0.45 * len(shares))
    names = list(shares)[::-1]
    labels = [as_label(name) for name in names]
    bars = axes.barh(labels, [100 * shares[name] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.set_xlim(0, 115 * max(shares.values()))
    axes.set_xlabel("Share of what separates the best quarter of the trials from all (%)")
    axes.grid(visible=False, axis="y")
    return figure


def front(runs: Sequence[Run]) -> Figure:
    """Plot two objectives and their Pareto front."""
    figure, axes = new_figure()
    first, second = series.measures(runs)
    scatter(axes, runs, lambda run: _scaled(run, 0, first), index=1)
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


def schedule(runs: Sequence[Run], parts: Sequence[Part]) -> Figure:
    """Plot when each trial was trained, and the epochs after which it was paused or ended."""
    trials = [run.trial for run in runs]
    figure, axes = new_figure(width=11, height=min(12.0, 1.6 + 0.17 * len(trials)))
    best = series.best(runs)
    for part in parts:
        is_best = best is not None and part.trial == best.trial
        span = [part.began / 60, part.ended / 60]
        colour = VERMILION if is_best else GREY
        axes.plot(span, [part.trial] * 2, color=colour, linewidth=3, solid_capstyle="butt")
    for state, style in STATES.items():
        ends = [(part.ended / 60, part.trial) for part in parts if part.state == state]
        if ends:
            axes.plot(*zip(*ends), linestyle="", markersize=5, **style)
    if len(trials) <= MOST_NUMBERED:
        for part in parts:
            place = (part.ended / 60, part.trial)
            axes.annotate(
                str(part.epochs), place, (5, 0), textcoords="offset points", va="center", fontsize=7
            )
    axes.plot([], [], color=VERMILION, linewidth=3, label="best trial")
    axes.set_xlabel("Time since the first trial began, without pauses of the sweep (min)")
    axes.set_ylabel(f"Trial (numbers: {step_name(runs)}s so far)")
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.invert_yaxis()
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def population(rows: Sequence[Descent], runs: Sequence[Run]) -> Figure:
    """Plot the values of a population's trials, with those of the best trial and its ancestors."""
    best = series.best(runs)
    epochs = max(len(run.history) for run in runs)
    parts = lineage.pieces(rows, epochs, best.trial if best else None)
    keys = list(rows[0].values)
    height = 3.2 * -(-len(keys) // 2)
    figure = Figure(figsize=(11, height), dpi=110, layout="constrained")
    panels = figure.subplots(-(-len(keys) // 2), 2, squeeze=False).flatten()
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    for axes, key in zip(panels, keys):
        for part in parts:
            style: dict[str, Any] = (
                {"color": VERMILION, "linewidth": 2.2}
                if part.is_winners
                else {"color": GREY, "linewidth": 0.9, "alpha": 0.7}
            )
            axes.plot([part.began, part.ended], [part.values[key]] * 2, **style)
        copies = [(row.epoch, row.values[key]) for row in rows if row.copied is not None]
        if copies:
            axes.plot(*zip(*copies), ".", color="black", markersize=4)
        if lineage.is_log(row.values[key] for row in rows):
            axes.set_yscale("log")
        axes.set_xlabel("Epochs done")
        axes.set_ylabel(as_label(key))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    axes = panels[0]
    if best:
        axes.plot(
            [], [], color=VERMILION, linewidth=2.2, label=f"best ({best.trial}) and ancestors"
        )
    axes.plot([], [], color=GREY, linewidth=0.9, label="other trials")
    axes.plot([], [], ".", color="black", label="copy, with changed values")
    axes.legend(fontsize="small")
    return figure


def time(timing: Timing) -> Figure:
    """Plot the time by activity, and the number of ended trials over time."""
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
    right.yaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    right.set_title(f"{timing.per_minute:.3g} trials a minute", fontsize="medium")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure
