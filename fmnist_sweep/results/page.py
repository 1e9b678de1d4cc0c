"""A sweep's self-contained page: the data as JSON, and the scripts of `assets` that draw it."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from fmnist_sweep.results import facts, lineage, metrics, parallel, series, swept
from fmnist_sweep.results.advice import advice
from fmnist_sweep.results.importance import FEWEST, with_values
from fmnist_sweep.results.lineage import Descent
from fmnist_sweep.results.ranking import pareto, ranked
from fmnist_sweep.results.tables import Run, step_name
from fmnist_sweep.results.timing import Timing, timing

SCRIPTS = ("plot.js", "charts.js", "table.js", "main.js")


def page(
    folder: Path, runs: Sequence[Run], shares: Mapping[str, float], refresh: float | None = None
) -> str:
    """Return the page as HTML. Users' text enters the page as data, never as markup.

    Args:
        folder: the sweep's folder.
        runs: ordered by trial, at least one.
        shares: the keys' `importances`.
        refresh: the seconds after which a browser loads the page again; None for never.
    """
    source = files("fmnist_sweep.results") / "assets"
    values = json.dumps(
        _plain(content(folder, runs, shares)), separators=(",", ":"), allow_nan=False
    )
    parts = {
        "TITLE": html.escape(f"Sweep {folder.resolve().name}"),
        "REFRESH": f'<meta http-equiv="refresh" content="{refresh:g}">' if refresh else "",
        "STYLE": (source / "style.css").read_text(encoding="utf-8"),
        # Text in the data must not close the script element.
        "DATA": values.replace("<", "\\u003c"),
        "SCRIPT": "\n".join((source / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    text = (source / "page.html").read_text(encoding="utf-8")
    # A single pass, so that inserted text is not searched for placeholders.
    pieces = text.split("@@")
    return "".join(parts[p] if i % 2 else p for i, p in enumerate(pieces))


def content(folder: Path, runs: Sequence[Run], shares: Mapping[str, float]) -> dict[str, Any]:
    """Return the page's data as plain values; accuracies in [0, 1], but in per cent in curves."""
    config = facts.configuration(runs[0].folder)
    best, base = series.best(runs), series.baseline(runs)
    rows = lineage.read(folder)
    # In a population the values that trials began with say little about what they reached.
    parallel_axes, lines = parallel.lines(runs) if not rows else ([], [])
    when = timing(runs)
    found = swept.grid(runs) if not rows else None
    return {
        "name": folder.resolve().name,
        "facts": facts.facts(folder, runs),
        "warning": facts.TEST_SELECTION if facts.is_selected_on_test(config) else None,
        "objectives": [
            {
                "name": measure.name,
                "label": measure.label,
                "scale": measure.scale,
                "unit": measure.unit,
                "maximize": measure.direction == "maximize",
                "window": series.objective_window(runs, i),
            }
            for i, measure in enumerate(series.measures(runs))
        ],
        "advice": advice(folder, runs),
        "best": best.trial if best else None,
        "baseline": base.trial if base else None,
        "winner": facts.confirmed_winner(folder),
        "steps": f"{step_name(runs)}s",
        "keys": list(dict.fromkeys(key for run in runs for key in run.params)),
        "runs": _rows(runs),
        "curves": [_curves(runs, *metric) for metric in series.curve_metrics(runs).items()],
        "running_best": series.running_best(runs),
        "importances": list(shares.items()),
        "importances_from": FEWEST if _may_have_importances(runs) and not rows else None,
        "importances_of": len(with_values(runs)),
        "axes": [asdict(axis) for axis in swept.axes(runs) if not rows],
        "parallel": {
            "axes": [asdict(axis) for axis in parallel_axes],
            "lines": [{"trial": x.run.trial, "places": x.places, "rank": x.rank} for x in lines],
            "top": parallel.TOP,
            "middle": parallel.MIDDLE,
        },
        "grid": {"axes": [asdict(a) for a in found[0]], "cells": [asdict(c) for c in found[1]]}
        if found
        else None,
        "front": [run.trial for run in series.front(runs)],
        "time": _time(when) if when else None,
        "lineage": _lineage(rows, runs, best),
    }


def _lineage(
    rows: Sequence[Descent], runs: Sequence[Run], best: Run | None
) -> dict[str, Any] | None:
    """Return a population's lineage; None if the sweep is none."""
    if not rows:
        return None
    epochs = max(len(run.history) for run in runs)
    keys = []
    for key in rows[0].values:
        values = [row.values[key] for row in rows]
        kind = "log" if lineage.is_log(values) else "linear"
        keys.append({"key": key, "kind": kind, "low": min(values), "high": max(values)})
    return {
        "epochs": epochs,
        "keys": keys,
        "pieces": lineage.pieces(rows, epochs, best.trial if best else None),
        "copies": [[row.epoch, row.trial, row.copied] for row in rows if row.copied is not None],
    }


def _time(when: Timing) -> dict[str, Any]:
    """Return a sweep's time; times of the schedule to tenths of a second."""
    schedule = [(p.trial, round(p.began, 1), round(p.ended, 1), *p[3:]) for p in when.schedule]
    return {**asdict(when), "schedule": schedule, "per_minute": when.per_minute}


def _may_have_importances(runs: Sequence[Run]) -> bool:
    """Return whether the sweep will have importances once enough trials are complete."""
    keys = [axis for axis in swept.axes(runs) if axis.key != runs[0].seed_key]
    return len(keys) > 1 and len(runs[0].objective) == 1


def _rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the table's rows, best first."""
    several = bool(runs) and len(runs[0].objective) > 1
    on_front = {run.trial for run in pareto(runs)} if several else set()
    rows = []
    for rank, run in enumerate(ranked(runs), 1):
        spread = {
            name: run.summary[f"{name}_std"]
            for name in ("val_accuracy", "val_loss", *run.objective)
            if run.summary.get(f"{name}_std") is not None
        }
        rows.append(
            {
                "trial": run.trial,
                "rank": rank if run.state == "COMPLETE" else None,
                "state": run.state,
                "reason": run.summary.get("reason"),
                "params": dict(run.params),
                "values": [series.objective(run, i) for i in range(len(run.objective))],
                "val_accuracy": run.summary.get("val_accuracy"),
                "val_loss": run.summary.get("val_loss"),
                "epochs": len(run.history),
                "paused_after": ", ".join(str(pause.epochs) for pause in run.pauses),
                "seconds": run.summary.get("seconds"),
                "spread": spread,
                "repeats": run.summary.get("repeats"),
                "baseline": run.default,
                "front": run.trial in on_front,
            }
        )
    return rows


def _curves(runs: Sequence[Run], metric: str, direction: str) -> dict[str, Any]:
    """Return a metric's curves: by trial, the steps, then the values with five digits.

    Consecutive steps are shortened to the first step.
    """
    curves = {}
    for run in runs:
        steps, values = series.curve(run, metric)
        if steps:
            in_a_row = steps == list(range(steps[0], steps[0] + len(steps)))
            shown = [float(f"{value:.5g}") for value in values]
            curves[run.trial] = [steps[0] if in_a_row else steps, *shown]
    return {
        "label": metrics.Measure(metric, direction).label,
        "unit": metrics.Measure(metric, direction).unit,
        "steps": step_name(runs),
        "window": series.curve_window(runs, metric),
        "curves": curves,
    }


def _plain(value: Any) -> Any:
    """Return a value for JSON: NaN and infinity become None, other types their text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)
