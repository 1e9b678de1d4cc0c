"""The table and the picture of `benchmarks.searching`."""

import bisect
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from fmnist_sweep.base.figures import png, ticker
from fmnist_sweep.results.plot_style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure
from fmnist_sweep.task.confirm.verdict import mean

OURS = "ours"
LABELS = {
    OURS: "fmnist_sweep",
    "ours-cold": "fmnist_sweep, empty cache",
    "ray": "Ray Tune, ASHA",
    "ray-patient": "Ray Tune, ASHA from 5 epochs",
    "optuna": "Optuna, median pruner",
    "optuna-halving": "Optuna, successive halving",
    "optuna-hyperband": "Optuna, Hyperband",
    "stock": "Hydra's Optuna sweeper",
}
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, GREY, "#CC79A7", "#56B4E9", "#000000")
SECONDS = (50, 100, 200, 500)
EARLY = 1 / 5  # of the time: when ours is compared with the rivals' end
SHOWN = 4.0  # points of % of the picture: the beginnings are of no interest


def best_at(run: dict[str, Any], second: float) -> float:
    """Return a run's best accuracy at a second, NaN before its first epoch."""
    known = bisect.bisect_right([when for when, _ in run["curve"]], second)
    return float(run["curve"][known - 1][1]) if known else math.nan


def table(results: dict[str, Any]) -> str:
    """Return the best accuracies and the differences to ours as Markdown, in %.

    The differences are paired by seed: ours after a fifth of the time less the rival at its end.
    """
    runs, end = results["runs"], results["seconds"]
    marks = [*(second for second in SECONDS if second < end), end]
    lines = [
        "| best validation accuracy, % | n | "
        + " | ".join(f"after {second:g} s" for second in marks)
        + " | trials | epochs |",
        "|---" * (len(marks) + 4) + "|",
    ]
    for name, by_seed in runs.items():
        cells = [_cell([best_at(run, second) for run in by_seed.values()]) for second in marks]
        counts = [
            f"{statistics.mean(run[key] for run in by_seed.values()):.0f}"
            for key in ("trials", "epochs")
        ]
        lines.append(f"| {' | '.join([_label(name), str(len(by_seed)), *cells, *counts])} |")
    early = EARLY * end
    lines += [
        "",
        f"| {_label(OURS)} after {early:g} s less a rival after {end:g} s | n | points of % |",
        "|---|---|---|",
    ]
    for name in runs:
        seeds = [seed for seed in runs[name] if seed in runs.get(OURS, {})]
        if name == OURS or not seeds:
            continue
        ahead = [best_at(runs[OURS][s], early) - best_at(runs[name][s], end) for s in seeds]
        lines.append(f"| {_label(name)} | {len(seeds)} | {_cell(ahead, sign='+')} |")
    return "\n".join([*lines, "", "Means over the seeds, ± half of the 95 % t interval."])


def _cell(values: Sequence[float], sign: str = "") -> str:
    found = mean([100 * value for value in values])
    if math.isnan(found.mean):
        return "-"
    half_width = "" if found.high is None else f" ± {found.high - found.mean:.2f}"
    return f"{found.mean:{sign}.2f}{half_width}"


def _label(name: str) -> str:
    return LABELS.get(name, name)


def picture(results: dict[str, Any]) -> bytes:
    """Plot each contender's mean curve with the range of its seeds; return a PNG."""
    figure, axes = new_figure(8.4, 4.8)
    end = results["seconds"]
    seconds = np.geomspace(5, end, 400)
    ends: dict[str, float] = {}
    for name, colour in zip(results["runs"], COLOURS):
        runs = results["runs"][name].values()
        curves = 100 * np.array([[best_at(run, second) for second in seconds] for run in runs])
        middle = curves.mean(axis=0)  # NaN until every seed has an epoch
        axes.plot(seconds, middle, color=colour, linewidth=1.8)
        axes.fill_between(seconds, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.15)
        if not np.isnan(middle[-1]):
            ends[name] = float(middle[-1])
    top = max(ends.values(), default=90.0)
    axes.set(
        xscale="log",
        xlim=(seconds[0], end),
        ylim=(top - SHOWN, top + SHOWN / 10),
        xlabel="seconds since the start of the command",
        ylabel="best validation accuracy, %",
        title=f"The same search: mean and range of the seeds (n = {_seeds(results)})",
    )
    axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    heights = spread([max(value, top - SHOWN) for value in ends.values()], SHOWN / 18)
    colours = dict(zip(results["runs"], COLOURS))
    for name, height in zip(ends, heights):
        text = f"{_label(name)}, {ends[name]:.2f}"
        axes.annotate(
            text, (1.01, height), xycoords=("axes fraction", "data"), color=colours[name],
            va="center", annotation_clip=False,
        )  # fmt: skip
    return png(figure)


def _seeds(results: dict[str, Any]) -> str:
    counts = sorted({len(by_seed) for by_seed in results["runs"].values()})
    return "-".join(map(str, counts[:: max(1, len(counts) - 1)]))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return the heights of labels, moved up as far as needed to stand a gap apart."""
    placed: dict[int, float] = {}
    last = -math.inf
    for index in sorted(range(len(heights)), key=lambda one: heights[one]):
        last = placed[index] = max(heights[index], last + gap)
    return [placed[index] for index in range(len(heights))]
