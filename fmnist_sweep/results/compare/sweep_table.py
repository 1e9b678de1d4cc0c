"""Check a sweep's table, of any version, and bring it into a common form."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fmnist_sweep.base.errors import CompareError
from fmnist_sweep.results.metrics import METRICS, direction

STATES = ("COMPLETE", "PAUSED", "PRUNED", "FAILED")
FIGURES = ("epochs", "seconds", "images_per_second")  # columns that may be missing
MOST_COLUMNS = 1000
DATA = "data"  # the name of the data set and its fingerprint, among the environment's items


@dataclass(frozen=True)
class SweepTable:
    """A sweep in a comparison.

    objective, maximize: the metric to compare, and whether higher is better.
    keys: the swept keys, in the order of the table.
    rows: by trial, with columns trial, state, value, std, repeats, epochs, seconds, images and the
        keys; unknown values are NaN.
    settings: the first run's configuration by dotted keys, empty without run folders.
    environment: the first run's versions, processor and so on.
    wall: seconds from the first start to the last end, without pauses; None if unknown.
    ranges: by swept key, the range or the choices as they were given, where they are known.
    """

    name: str
    source: Path
    objective: str
    maximize: bool
    keys: list[str]
    rows: pd.DataFrame
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    wall: float | None = None
    ranges: Mapping[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> pd.DataFrame:
        """The rows of complete trials, by trial."""
        return self.rows[self.rows["state"] == "COMPLETE"]

    @property
    def winner(self) -> pd.Series:
        """The row of the best complete trial, the first of equals."""
        values = self.complete["value"].to_numpy()
        return self.complete.iloc[int(values.argmax() if self.maximize else values.argmin())]

    def setting(self, key: str, row: pd.Series) -> Any:
        """Return a key's value in a trial, swept or fixed, or None if it is unknown."""
        if key not in self.keys:
            value = self.settings.get(key)
            return "null" if value is None and key in self.settings else value
        value = row[key]
        return None if value is None or value is pd.NA or value != value else value


def read_csv(path: Path) -> pd.DataFrame:
    """Read a sweep's table as it is in the file.

    Raises:
        CompareError: the file is unreadable or is not a table.
    """
    try:
        text = path.read_bytes().decode()
        _check_shape(text)
        # null, None and NA may be values of swept keys.
        return pd.read_csv(
            io.StringIO(text), low_memory=False, keep_default_na=False, na_values=[""]
        )
    except OSError as error:
        raise CompareError(f"{path}: {error.strerror}") from None
    except (ValueError, csv.Error) as error:  # pandas raises subclasses of ValueError
        line = " ".join(str(error).split())
        raise CompareError(f"{path}: torn or not a table: {line}") from None


def _check_shape(text: str) -> None:
    """Check that the last line is whole and that all lines have the same number of fields.

    Pandas would take surplus fields for an index.

    Raises:
        ValueError: the shape is wrong, or there are more than `MOST_COLUMNS` columns.
    """
    if not text.endswith("\n"):
        raise ValueError("its last line has no end")
    lines = csv.reader(io.StringIO(text))
    columns = len(next(lines, []))
    if columns > MOST_COLUMNS:  # pandas needs minutes for a hundred thousand
        raise ValueError(f"it has {columns:,} columns, more than {MOST_COLUMNS:,}")
    for line in lines:
        if line and len(line) != columns:
            raise ValueError(f"line {lines.line_num} has {len(line)} fields instead of {columns}")


def checked(
    path: Path, table: pd.DataFrame, directions: dict[str, str] | None, wanted: str | None
) -> SweepTable:
    """Check a table and bring its rows into the common form.

    Args:
        path: the table's file or folder, for messages.
        table: the table as `read_csv` or `Sweep.sweep_table` returns it.
        directions: minimize or maximize for each of the sweep's objectives; None if unknown.
        wanted: the column to compare; None for the sweep's only objective.

    Raises:
        CompareError: the table is not a sweep's, is damaged, or has no complete trial.
    """
    for column in ("trial", "state"):
        if column not in table:
            raise CompareError(f"{path}: is no sweep's table: it has no column {column}")
    unknown = sorted(set(map(str, table["state"])) - set(STATES))
    if unknown:
        raise CompareError(
            f"{path}: torn or edited: state {unknown[0]!r} is none of {', '.join(STATES)}"
        )
    trials = _numbers(path, table, "trial")
    is_number = (trials % 1 == 0) & trials.between(0, 2**53)
    if not is_number.all() or trials.duplicated().any():
        raise CompareError(f"{path}: torn or edited: its trials are not numbered one by one")
    column, name, direction = _objective(path, table, directions, wanted)
    rows = pd.DataFrame({"trial": trials.astype(int), "state": table["state"]})
    rows["value"] = _numbers(path, table, column)
    rows["std"] = _numbers(path, table, f"{column}_std")
    rows["repeats"] = _numbers(path, table, "repeats")
    for figure in FIGURES:
        rows[figure] = _numbers(path, table, figure)
    rows["epochs"] *= rows["repeats"].fillna(1)
    rows["images"] = rows.pop("images_per_second") * rows["seconds"]
    keys = _keys(table)
    swept = table[keys].add_prefix("key:")
    rows = pd.concat([rows, swept], axis=1).sort_values("trial", ignore_index=True)
    rows.columns = [str(c).removeprefix("key:") if str(c)[4:] in keys else c for c in rows.columns]
    rows = rows.loc[:, ~rows.columns.duplicated(keep="last")]
    complete = rows[rows["state"] == "COMPLETE"]
    if rows.empty or complete.empty:
        reason = f"all {len(rows)} trials failed or were pruned" if len(rows) else "no trials"
        raise CompareError(f"{path}: has nothing to compare: {reason}")
    if not np.isfinite(complete["value"]).all():
        bad = complete[~np.isfinite(complete["value"])]["trial"].iloc[0]
        raise CompareError(f"{path}: torn or edited: complete trial {bad} has no {column}")
    return SweepTable("", path, name, direction == "maximize", keys, rows)


def _numbers(path: Path, table: pd.DataFrame, column: str) -> pd.Series:
    """Return a column as floats, all NaN if it is missing."""
    if column not in table:
        return pd.Series(np.nan, index=table.index)
    values = table[column]
    if (numbers := _floats(values)) is not None:
        return numbers
    rows = (values.iloc[row : row + 1] for row in range(len(values)))
    bad = next(repr(row.item()) for row in rows if _floats(row) is None)
    bad = bad if len(bad) <= 50 else f"{bad[:40]}..."
    raise CompareError(f"{path}: torn or edited: {column} holds {bad}, no number")


def _floats(values: pd.Series) -> pd.Series | None:
    try:
        return pd.to_numeric(values).astype(float)
    except (ValueError, TypeError, OverflowError):
        return None


def _objective(
    path: Path, table: pd.DataFrame, directions: dict[str, str] | None, wanted: str | None
) -> tuple[str, str, str]:
    """Return the column to compare, its metric, and the metric's direction."""
    objectives = [c for c in map(str, table.columns) if c.startswith("objective")]
    objectives = [c for c in objectives if not c.endswith("_std")]
    if wanted:
        if wanted not in table:
            known = ", ".join(m for m in METRICS if m in table)
            raise CompareError(f"--objective {wanted}: {path} has no such column (it has {known})")
        return wanted, wanted, (directions or {}).get(wanted) or direction(wanted)
    if len(objectives) > 1:
        names = [c.removeprefix("objective_") for c in objectives]
        raise CompareError(
            f"{path}: has {len(names)} objectives; --objective {names[0]} compares one of them"
        )
    if objectives != ["objective"]:
        raise CompareError(f"{path}: is no sweep's table: it has no column objective")
    if directions:
        ((name, name_direction),) = directions.items()
        return "objective", name, name_direction
    # A table alone does not name its objective: take the metric with the same values.
    others = ("trial", *objectives, *_keys(table))
    reported = [c for c in map(str, table.columns) if c not in others]
    columns = [m for m in (*METRICS, *reported) if m in table]
    same = [m for m in columns if table[m].equals(table["objective"])]
    if not same:
        return "objective", "objective", "maximize"
    name = "val_accuracy" if "val_accuracy" in same else same[0]
    return "objective", name, direction(name)


def _keys(table: pd.DataFrame) -> list[str]:
    """Return the columns between state and objective, or else all dotted names."""
    columns = [str(column) for column in table.columns]
    objectives = [i for i, c in enumerate(columns) if c.startswith("objective")]
    start = columns.index("state") + 1
    if objectives and objectives[0] >= start:
        return columns[start : objectives[0]]
    return [column for column in columns if "." in column]
