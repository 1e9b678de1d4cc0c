"""The sweeps below a folder, for a list: their trials, best value, age, state and command."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from fmnist_sweep.base.locks import LifeLock
from fmnist_sweep.results import facts, record
from fmnist_sweep.results.metrics import Measure

FEWEST_LETTERS = 12  # of a command, however narrow the terminal
DEEPEST = 4  # folders below the given one in which sweeps are looked for


class ListedSweep(NamedTuple):
    """A sweep in a list.

    ended: trials that have ended.
    total: trials in all; None if it is not known.
    state: running, complete or interrupted.
    best: the best value of a complete trial with its metric, as text; "" without one.
    age: seconds since something was written.
    command: the command that began it; "" if it is not known.
    """

    folder: Path
    ended: int
    total: int | None
    state: str
    best: str
    age: float
    command: str


def find(roots: Sequence[Path]) -> list[ListedSweep]:
    """Return the sweeps in folders and below them, the newest first."""
    found = [_listed(folder) for root in roots for folder in _folders(root)]
    return sorted(found, key=lambda sweep: sweep.age)


def _folders(root: Path) -> Iterator[Path]:
    for where, names, files in os.walk(root):
        folder = Path(where)
        is_sweep = "study.json" in files or "sweep.csv" in files
        if is_sweep:
            yield folder
        if is_sweep or len(folder.relative_to(root).parts) >= DEEPEST:
            names.clear()


def _listed(folder: Path) -> ListedSweep:
    rows = _rows(folder)
    states = rows["state"].tolist() if "state" in rows else []
    ended = sum(state != "PAUSED" for state in states)
    attempts = record.attempts(folder)
    wanted = facts.pick(facts.settings(folder), "hydra.sweeper.n_trials")
    total = wanted if isinstance(wanted, int) else None
    return ListedSweep(
        folder,
        ended,
        total,
        _state(folder, ended, total or len(attempts)),
        _best(rows, attempts[min(attempts)][-1] if attempts else None),
        time.time() - _written_at(folder),
        _command(attempts[max(attempts)][-1]) if attempts else "",
    )


def _rows(folder: Path) -> pd.DataFrame:
    with suppress(OSError, ValueError):
        return pd.read_csv(folder / "sweep.csv")
    return pd.DataFrame()


def _state(folder: Path, ended: int, total: int) -> str:
    if is_running(folder):
        return "running"
    return "complete" if ended >= total else "interrupted"


def is_running(folder: Path) -> bool:
    """Return whether a process works on a sweep; one of another host may not be seen."""
    return any(LifeLock.is_held(path) for path in folder.glob(".worker-*.lock"))


def _best(rows: pd.DataFrame, run: Path | None) -> str:
    try:
        note = record.read_json(run, "trial.json") if run else {}
        name, direction = note["objective"][0], note["direction"][0]
        column = "objective" if "objective" in rows else name
        values = pd.to_numeric(rows[column][rows["state"] == "COMPLETE"], errors="coerce").dropna()
        value = values.max() if direction == "maximize" else values.min()
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""
    if values.empty:
        return ""
    measure = Measure(name, direction)
    unit = f" {measure.unit}" if measure.unit else ""
    text = f"{measure.scale * value:.2f}" if measure.is_accuracy else f"{value:.4g}"
    return f"{name} {text}{unit}"


def _written_at(folder: Path) -> float:
    times = [folder.stat().st_mtime]
    for name in ("sweep.csv", "study.db", "confirm.json"):
        with suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def _command(run: Path) -> str:
    try:
        return str(record.read_json(run, "environment.json").get("command", ""))
    except (OSError, ValueError):
        return ""


def show(sweeps: Sequence[ListedSweep], screen: Console) -> None:
    """Print a table of sweeps; the command gets what room is left."""
    names = ("sweep", "trials", "state", "best", "age")
    rows = [
        (
            facts.shown_path(sweep.folder),
            str(sweep.ended) + ("" if sweep.total is None else f"/{sweep.total}"),
            sweep.state,
            sweep.best,
            _age(sweep.age),
        )
        for sweep in sweeps
    ]
    widths = [max(map(len, column)) for column in zip(names, *rows)]
    room = max(FEWEST_LETTERS, screen.width - sum(widths) - 3 * len(widths))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for name in names:
        is_number = name in ("trials", "age")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    table.add_column("command", no_wrap=True)
    for row, sweep in zip(rows, sweeps):
        command = sweep.command.removeprefix("python -m fmnist_sweep.train ")
        table.add_row(*row, command if len(command) <= room else f"{command[: room - 1]}…")
    screen.print(table)


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
