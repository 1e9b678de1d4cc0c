"""Plots of a confirmation."""

from collections.abc import Sequence

import numpy as np

from fmnist_sweep.base.figures import Figure, as_label, png
from fmnist_sweep.results.metrics import Measure
from fmnist_sweep.results.plot_style import BLUE, GREY, VERMILION
from fmnist_sweep.task.confirm.verdict import CandidateResult

LABELLED = 26  # classes; the letters of the alphabet


def confusion(
    confusions: Sequence[Sequence[Sequence[int]]], names: Sequence[str], title: str
) -> bytes:
    """Plot the mean confusion matrix, each row in per cent of its class; return a PNG.

    Cells have their numbers, and axes the names of the classes, up to `LABELLED` classes.
    """
    counts = np.array(confusions, dtype=float).mean(axis=0)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(8.6, 7.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    # The diagonal would leave all mistakes the same colour on a linear scale.
    image = axes.imshow(np.sqrt(share), cmap="cividis", vmin=0, vmax=10)
    labelled = range(len(names)) if len(names) <= LABELLED else ()
    for row in labelled:
        for column in labelled:
            value = share[row, column]
            text = f"{value:.1f}" if value else "0"
            axes.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize="small",
                color="black" if value > 25 else "white",
            )
    if labelled:
        axes.set_xticks(labelled, map(as_label, names), rotation=40, ha="right")
        axes.set_yticks(labelled, map(as_label, names))
    axes.set(xlabel="Predicted class", ylabel="True class")
    axes.set_title(title, fontsize="medium")
    bar = figure.colorbar(image, label="Share of the true class' test images (%)", shrink=0.8)
    bar.set_ticks(
        [np.sqrt(v) for v in (0, 1, 5, 20, 50, 100)], labels=["0", "1", "5", "20", "50", "100"]
    )
    return png(figure)


def candidates(table: Sequence[CandidateResult], measure: Measure) -> bytes:
    """Plot each candidate's values on fresh seeds, mean, interval and value in the search."""
    figure = Figure(figsize=(8.6, 1.6 + 0.5 * len(table)), dpi=110, layout="constrained")
    axes = figure.subplots()
    names = []
    for place, one in enumerate(reversed(table)):
        name = one.candidate.name
        mark = " (baseline)" if one.candidate.is_baseline and name != "baseline" else ""
        names.append(name + mark)
        values = [measure.scale * v for v in one.values.values() if v is not None]
        axes.plot(
            values,
            [place] * len(values),
            "o",
            color=GREY,
            markersize=5,
            alpha=0.8,
            label="fresh seeds" if not place else None,
        )
        if one.fresh and one.fresh.low is not None and one.fresh.high is not None:
            middle = measure.scale * one.fresh.mean
            reach = measure.scale * one.fresh.high - middle
            axes.errorbar(
                [middle],
                [place],
                xerr=[reach],
                fmt="D",
                color=BLUE,
                capsize=4,
                label="mean, 95 % interval" if not place else None,
            )
        if one.candidate.value is not None:
            axes.plot(
                [measure.scale * one.candidate.value],
                [place],
                "x",
                color=VERMILION,
                markersize=8,
                markeredgewidth=2,
                label="in the search" if not place else None,
            )
    axes.set_yticks(range(len(names)), [as_label(name) for name in names])
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlabel(measure.label)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return png(figure)
