"""The lineage of a population: which trial copied which, when, and with which values it continued.

`lineage.csv` lies beside `sweep.csv`. A row tells the values of a trial after an epoch: after epoch
0 those with which it began, later those with which it continued as a copy of another trial.
"""

import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    text = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(text, [*_COLUMNS, *row.values], lineterminator="\n")
            writer.writeheader()
        writer.writerow({**dict(zip(_COLUMNS, row)), **row.values})
    write_atomically(sweep / FILE, text.getvalue())


def _number(text: str) -> int | float:
    return int(text) if text.lstrip("-").isdigit() else float(text)


def read(sweep: Path) -> list[Descent]:
    """Return a sweep's lineage; an empty list if it has none.

    Raises:
        RecordError: the file is damaged.
    """
    path = sweep / FILE
    if not path.exists():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [
                Descent(
                    int(row["epoch"]),
                    int(row["trial"]),
                    int(row["copied"]) if row["copied"] else None,
                    {key: _number(row[key]) for key in row if key not in _COLUMNS},
                )
                for row in csv.DictReader(file)
            ]
    except (KeyError, TypeError, ValueError) as error:
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


class Piece(NamedTuple):
    """A time in which a trial's values did not change.

    trial: the trial.
    began, ended: the numbers of epochs before and at its end.
    values: the trial's values by key.
    is_winners: whether the best trial descends from it, or is it.
    """

    trial: int
    began: int
    ended: int
    values: Mapping[str, float]
    is_winners: bool


def pieces(rows: Sequence[Descent], epochs: int, winner: int | None) -> list[Piece]:
    """Return the pieces of all trials, those of the winner and its ancestors last.

    Args:
        rows: the lineage.
        epochs: the number of epochs of the longest trial.
        winner: the best trial, if there is one.
    """
    path = ancestry(rows, winner) if winner is not None else []
    until = {id(row): after.epoch for row, after in itertools.pairwise(path)}
    if path:
        until[id(path[-1])] = epochs
    found = []
    for row in rows:
        later = [other.epoch for other in rows if other.trial == row.trial]
        ended = min((epoch for epoch in later if epoch > row.epoch), default=epochs)
        cut = until.get(id(row), row.epoch)  # up to here it belongs to the winner's line
        found.append(Piece(row.trial, row.epoch, cut, row.values, is_winners=True))
        found.append(Piece(row.trial, cut, ended, row.values, is_winners=False))
    whole = [piece for piece in found if piece.began < piece.ended]
    return sorted(whole, key=lambda piece: piece.is_winners)


def is_log(values: Iterable[float]) -> bool:
    """Return whether values spread so far that a logarithmic axis suits them."""
    found = list(values)
    return min(found) > 0 and max(found) > 30 * min(found)


def schedule(rows: Sequence[Descent], trial: int) -> dict[int, dict[str, Any]]:
    """Return a trial's values by the epoch from which they held, 1 in the beginning."""
    return {row.epoch + 1: dict(row.values) for row in ancestry(rows, trial)}
