"""A sweep's runs, best first, and their table on the screen."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from fmnist_sweep.results.tables import Run, step_name

_HEADS = {"val_accuracy": "val acc %", "val_loss": "val loss"}
SHOWN = 20  # rows of the table on a screen


def ranked(runs: Sequence[Run]) -> list[Run]:
    """Return the complete runs, best first, then the paused and pruned, then the failed runs.

    With several objectives the Pareto front comes first. Runs are ordered by the first objective.
    """
    order = {"COMPLETE": 0, "PAUSED": 1, "PRUNED": 1}
    front = {run.trial for run in pareto(runs)}

    def key(run: Run) -> tuple[int, bool, float, int]:
        return order.get(run.state, 2), run.trial not in front, -_oriented(run)[0], run.trial

    return sorted(runs, key=key)


def pareto(runs: Sequence[Run]) -> list[Run]:
    """Return the Pareto front: no other run beats these in one objective and loses in none."""
    complete = [run for run in runs if run.state == "COMPLETE"]
    points = {run.trial: _oriented(run) for run in complete}

    def beaten(run: Run) -> bool:
        point = points[run.trial]
        return any(
            other != point and all(y >= x for x, y in zip(point, other))
            for other in points.values()
        )

    return [run for run in complete if not beaten(run)]


def _oriented(run: Run) -> list[float]:
    """Return the objectives' values, negated where lower is better."""
    signs = [1 if direction == "maximize" else -1 for direction in run.direction]
    return [
        sign * value if isinstance(value, int | float) else -math.inf
        for sign, value in zip(signs, run.values)
    ]


def console() -> Console:
    """Return standard output without markup; lines into a pipe are not wrapped at 80 columns."""
    screen = Console(markup=False, emoji=False, highlight=False)
    if not screen.is_terminal:
        screen.width = 200
    return screen


def show(runs: Sequence[Run], screen: Console) -> None:
    """Print the table, best runs first, with the row of the default configuration marked.

    On a narrow terminal the least needed columns are left out.
    """
    rows = ranked(runs)
    several = bool(rows) and len(rows[0].objective) > 1
    front = {run.trial for run in pareto(runs)} if several else set()
    shown = rows[:SHOWN] + [run for run in rows[SHOWN:] if run.default]
    columns = _columns(runs, shown, {run.trial: rank for rank, run in enumerate(rows, 1)}, front)
    left_out = []
    table = _table(columns, shown)
    optimised = [_HEADS.get(name, name) for name in (runs[0].objective if runs else ())]
    needed = {"rank", "trial", "state", *optimised}
    while _width(table, screen) > screen.width and (name := _least_needed(columns, needed)):
        left_out.append(name)
        del columns[name]
        table = _table(columns, shown)
    screen.print(table)
    if left_out:
        screen.print(f"Too narrow to show: {', '.join(left_out)}; all are in sweep.csv")
    for run in rows:
        if run.state == "FAILED":
            screen.print(f"Trial {run.trial} failed: {run.summary.get('reason')}")
    if len(shown) < len(rows):
        screen.print(f"{len(rows) - len(shown)} more rows in sweep.csv")


def _columns(
    runs: Sequence[Run], shown: Sequence[Run], ranks: dict[int, int], front: set[int]
) -> dict[str, Callable[[Run], str]]:
    """Return the table's columns by name, each with the function that makes a run's cell."""

    def rank(run: Run) -> str:
        return str(ranks[run.trial]) if run.state == "COMPLETE" else "-"

    def marks(run: Run) -> str:
        return ", ".join(["baseline"] * run.default + ["Pareto front"] * (run.trial in front))

    def value(key: str) -> Callable[[Run], str]:
        return lambda run: _short(run.params.get(key, ""))

    def figure(name: str) -> Callable[[Run], str]:
        return lambda run: _short(run.figure(name)) if run.figure(name) is not None else "-"

    columns: dict[str, Callable[[Run], str]] = {"rank": rank, "trial": lambda run: str(run.trial)}
    if any(run.state != "COMPLETE" for run in shown):
        columns["state"] = lambda run: run.state.lower()
    columns |= {key: value(key) for run in runs for key in run.params}
    if any(run.metrics for run in runs):  # another application's training
        columns |= {name: figure(name) for name in runs[0].objective}
    else:
        shown_anyway = (*_HEADS, "seconds")
        columns |= {n: figure(n) for n in runs[0].objective if n not in shown_anyway}
        columns["val acc %"] = lambda run: _mean(run, "val_accuracy", 100, 2)
        columns["val loss"] = lambda run: _mean(run, "val_loss", 1, 4)
    columns["epochs" if step_name(runs) == "epoch" else "steps"] = lambda run: str(
        len(run.history) or "-"
    )
    columns["seconds"] = lambda run: _number(run.summary.get("seconds"), 1, 1)
    columns[""] = marks
    return columns


def _least_needed(columns: Mapping[str, Any], needed: Collection[str]) -> str | None:
    """Return the column to leave out next, or None if all the others are needed."""
    figures = ("seconds", "epochs", "val loss", "val acc %")
    first = [name for name in figures if name in columns and name not in needed]
    keys = [name for name in columns if name not in (*needed, *figures, "")]
    return next(iter([*first, *reversed(keys)]), None)


def _table(columns: Mapping[str, Callable[[Run], str]], runs: Sequence[Run]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for name in columns:
        is_text = name in ("", "state")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for run in runs:
        style = "bold" if run.default else None
        table.add_row(*(column(run) for column in columns.values()), style=style)
    return table


def _width(table: Table, screen: Console) -> int:
    """Return a table's width without wrapping, in characters."""
    wide = screen.options.update(max_width=10_000)
    return Measurement.get(screen, wide, table).maximum


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _mean(run: Run, name: str, scale: float, digits: int) -> str:
    """Format a figure, with its standard deviation if the trial has repeats."""
    text = _number(run.summary.get(name), scale, digits)
    spread = _number(run.summary.get(f"{name}_std"), scale, digits)
    return text if spread == "-" else f"{text} ± {spread}"


def _number(value: object, scale: float, digits: int) -> str:
    return f"{scale * value:.{digits}f}" if isinstance(value, int | float) else "-"
