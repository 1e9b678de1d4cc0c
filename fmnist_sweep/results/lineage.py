"""The lineage of a population: which trial copied which, when, and with which values it continued.

`lineage.csv` lies beside `sweep.csv`. A row tells the values of a trial after an epoch: after epoch
0 those with which it began, later those with which it continued as a copy of another trial.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fmnist_sweep.base.errors import RecordError
from fmnist_sweep.base.files import write_atomically

FILE = "lineage.csv"
_COLUMNS = ["epoch", "trial", "copied"]


class Descent(NamedTuple):
    """A trial's values from some epoch on.

    epoch: the number of epochs before.
    trial: the trial.
    copied: the trial whose state it took over; None in the beginning.
    values: its values by key from then on.
    """

    epoch: int
    trial: int
    copied: int | None
    values: Mapping[str, float]


def write(sweep: Path, rows: Iterable[Descent]) -> None:
    """Write a sweep's lineage, whole or not at all."""
    table = pd.DataFrame(
        [
            {"epoch": row.epoch, "trial": row.trial, "copied": row.copied, **row.values}
            for row in rows
        ]
    )
    table["copied"] = table["copied"].astype("Int64")
    write_atomically(sweep / FILE, table.to_csv(index=False, lineterminator="\n"))


def read(sweep: Path) -> list[Descent]:
    """Return a sweep's lineage; an empty list if it has none.

    Raises:
        RecordError: the file is damaged.
    """
    path = sweep / FILE
    if not path.exists():
        return []
    try:
        table = pd.read_csv(path, float_precision="round_trip")
        keys = [name for name in table.columns if name not in _COLUMNS]
        return [
            Descent(
                int(row["epoch"]),
                int(row["trial"]),
                None if pd.isna(row["copied"]) else int(row["copied"]),
                {key: row[key] for key in keys},
            )
            for row in table.to_dict("records")
        ]
    except (KeyError, ValueError) as error:
        raise RecordError(f"{path}: damaged: {error}") from None


def ancestry(rows: Sequence[Descent], trial: int) -> list[Descent]:
    """Return the rows by which a trial came to its state, earliest first.

    The first row is the beginning of the earliest ancestor; each further row is a copy.
    """
    found: list[Descent] = []
    current: int | None = trial
    for row in sorted(rows, key=lambda row: -row.epoch):
        if row.trial == current:
            found.append(row)
            current = row.copied
    return found[::-1]


def schedule(rows: Sequence[Descent], trial: int) -> dict[int, dict[str, Any]]:
    """Return a trial's values by the epoch from which they held, 1 in the beginning."""
    return {row.epoch + 1: dict(row.values) for row in ancestry(rows, trial)}
