"""A sweep's runs, best first, and the table of them on a screen."""

import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from fmnist_sweep.report.tables import Run

SHOWN = 20  # rows of the table on a screen


def ranked(runs: Sequence[Run]) -> list[Run]:
    """Complete runs best first, then pruned and failed ones.

    With several objectives the Pareto front comes first, by its first objective.
    """
    order = {"COMPLETE": 0, "PRUNED": 1}
    front = {run.trial for run in pareto(runs)}

    def key(run: Run) -> tuple[int, bool, float, int]:
        return order.get(run.state, 2), run.trial not in front, -_oriented(run)[0], run.trial

    return sorted(runs, key=key)


def pareto(runs: Sequence[Run]) -> list[Run]:
    """Complete runs that no other beats in one objective without losing in another."""
    complete = [run for run in runs if run.state == "COMPLETE"]
    points = {run.trial: _oriented(run) for run in complete}

    def beaten(run: Run) -> bool:
        mine = points[run.trial]
        return any(
            other != mine and all(theirs >= own for theirs, own in zip(other, mine))
            for other in points.values()
        )

    return [run for run in complete if not beaten(run)]


def _oriented(run: Run) -> list[float]:
    """The objectives' values, turned so that more is better."""
    signs = [1 if direction == "maximize" else -1 for direction in run.direction]
    return [
        sign * value if isinstance(value, int | float) else -math.inf
        for sign, value in zip(signs, run.values)
    ]


def console() -> Console:
    """Standard output; a file or a pipe is not folded at 80 columns."""
    screen = Console()
    return screen if screen.is_terminal else Console(width=200)


def show(runs: Sequence[Run], screen: Console) -> None:
    """Prints the table: best first, the default configuration's row marked."""
    rows = ranked(runs)
    several = bool(rows) and len(rows[0].objective) > 1
    front = {run.trial for run in pareto(runs)} if several else set()
    shown = rows[:SHOWN] + [run for run in rows[SHOWN:] if run.default]
    keys = dict.fromkeys(key for run in runs for key in run.params)
    failed = any(run.state != "COMPLETE" for run in shown)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for name in ("rank", "trial"):
        table.add_column(name, justify="right", no_wrap=True)
    if failed:
        table.add_column("state", no_wrap=True)
    for key in keys:
        table.add_column(key, justify="right", no_wrap=True)
    for name in ("val acc %", "val loss", "epochs", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for rank, run in enumerate(rows, 1):
        if run not in shown:
            continue
        notes = ["baseline"] * run.default + ["Pareto front"] * (run.trial in front)
        table.add_row(
            str(rank) if run.state == "COMPLETE" else "-",
            str(run.trial),
            *([run.state.lower()] if failed else []),
            *(_short(run.params.get(key, "")) for key in keys),
            _mean(run, "val_accuracy", 100, 2),
            _mean(run, "val_loss", 1, 4),
            str(len(run.history) or "-"),
            _number(run.summary.get("seconds"), 1, 1),
            ", ".join(notes),
            style="bold" if run.default else None,
        )
    screen.print(table)
    for run in rows:
        if run.state == "FAILED":
            screen.print(f"Trial {run.trial} failed: {run.summary.get('reason')}", markup=False)
    if len(shown) < len(rows):
        screen.print(f"{len(rows) - len(shown)} more rows in sweep.csv")


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _mean(run: Run, name: str, scale: float, digits: int) -> str:
    """A figure, of repeats with its standard deviation."""
    text = _number(run.summary.get(name), scale, digits)
    spread = _number(run.summary.get(f"{name}_std"), scale, digits)
    return text if spread == "-" else f"{text} ± {spread}"


def _number(value: object, scale: float, digits: int) -> str:
    return f"{scale * value:.{digits}f}" if isinstance(value, int | float) else "-"
