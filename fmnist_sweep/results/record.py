"""Run folders: their files, and the functions that read and write them.

.hydra/           the configuration, written by Hydra
train.log         the lines of the screen, with times
history.csv       one row per epoch
summary.json      the run's final row; exists once the run has ended or while it is paused
trial.json        in a sweep: the trial's number and parameters, and when it was paused
environment.json  versions, device, threads, git commit, command line
results.png       loss and accuracy curves
model.pt          a state dict for a plain `nn.Module`
checkpoint-0.pt   during training: the state of the first repeat at the end of an epoch
"""

import csv
import functools
import glob
import importlib.metadata
import io
import json
import math
import platform
import re
import shlex
import stat
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from fmnist_sweep.base.errors import RecordError
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.base.processes import cores

# In bytes. The history of half a million epochs, the longest text file of a run, is smaller.
LARGEST = 64 * 2**20
# Between two writes of a history in progress.
HISTORY_SECONDS = 2.0


@dataclass(frozen=True)
class Epoch:
    """One row of `history.csv`. Losses are mean cross-entropies in nats, accuracies in [0, 1].

    Training figures are means over the epoch's batches, taken while the weights change. Validation
    figures use the weights at the end of the epoch. `seconds` is the time of both. The balanced
    accuracy and macro F1, which count all classes alike, are missing in runs of earlier versions.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float
    val_balanced_accuracy: float | None = None
    val_macro_f1: float | None = None


def escape_csv_formula(value: Any) -> Any:
    """Return a table cell, with an apostrophe before text that a spreadsheet would execute.

    Numbers, also as text, stay as they are. Source: OWASP, CSV injection.
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def holds_run(folder: Path) -> bool:
    """Return whether the folder holds an earlier run."""
    return any((folder / name).exists() for name in ("history.csv", "summary.json"))


def holds_sweep(folder: Path) -> bool:
    """Return whether a sweep has begun in the folder or left its tables there."""
    return any((folder / name).exists() for name in ("study.json", "sweep.csv"))


def checkpoint(folder: Path, repeat: int) -> Path:
    """Return the path of a repeat's checkpoint, which is kept during training."""
    return folder / f"checkpoint-{repeat}.pt"


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoint files in a run folder by repeat."""
    names = (
        (path, re.fullmatch(r"checkpoint-(\d{1,9}).pt", path.name)) for path in folder.iterdir()
    )
    return {int(name[1]): path for path, name in names if name}


def is_interrupted(folder: Path) -> bool:
    """Return whether the folder holds an unfinished run that can resume from a checkpoint."""
    return bool(checkpoints(folder)) and not (folder / "summary.json").exists()


def earlier_attempts(folder: Path) -> list[Path]:
    """Return the folders of earlier attempts at a run, newest first: `7-2` and `7` for `7-3`."""
    name = re.fullmatch(r"(.+)-(\d+)", folder.name)
    if not name or not folder.with_name(name[1]).is_dir():
        return []
    found = [(1, folder.with_name(name[1]))]
    for attempt in folder.parent.glob(f"{glob.escape(name[1])}-*"):
        number = attempt.name.removeprefix(f"{name[1]}-")
        if number.isdecimal() and 1 < int(number) < int(name[2]) and attempt.is_dir():
            found.append((int(number), attempt))
    return [attempt for _, attempt in sorted(found, reverse=True)]


def attempts(sweep: Path) -> dict[int, list[Path]]:
    """Return a sweep's run folders by trial. The attempts at trial 3 are `3`, `3-2`, ..."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for folder in sweep.iterdir():
        name = re.fullmatch(r"(\d+)(?:-(\d+))?", folder.name)
        if name and folder.is_dir():
            found.setdefault(int(name[1]), []).append((int(name[2] or 1), folder))
    return {trial: [f for _, f in sorted(found[trial])] for trial in sorted(found)}


def write_history(folder: Path, history: Sequence[Epoch | Mapping[str, float]]) -> None:
    """Write `history.csv`, numbers with all their digits.

    Args:
        folder: the run folder.
        history: rows with the same first column, `epoch` or `step`. Where a row lacks a column, the
            cell is empty.
    """
    rows = [_as_row(row) if isinstance(row, Epoch) else row for row in history]
    columns = dict.fromkeys(name for row in rows for name in row) or EPOCH_COLUMNS
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row.get(name, "") for name in columns] for row in rows)
    write_atomically(folder / "history.csv", text.getvalue())


class HistoryFile:
    """The `history.csv` of a run in progress, written from time to time.

    A write waits for the disk, which takes longer than many an epoch.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.unwritten: Sequence[Epoch | Mapping[str, float]] | None = None
        self.written_at = time.monotonic()

    def update(self, rows: Sequence[Epoch | Mapping[str, float]]) -> None:
        """Take all rows so far; write them if the last write is `HISTORY_SECONDS` ago."""
        self.unwritten = rows
        if time.monotonic() - self.written_at >= HISTORY_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows, unless they have been written."""
        if self.unwritten is not None:
            write_history(self.folder, self.unwritten)
            self.unwritten, self.written_at = None, time.monotonic()


def read_history(folder: Path) -> list[dict[str, float]]:
    """Read `history.csv`.

    Returns:
        The rows. Their first item is the epoch or step, an integer; empty cells of steps are NaN.

    Raises:
        OSError: the file is missing or unreadable.
        RecordError: the file is torn or is not a history.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(folder / "history.csv"), newline=""))
        rows = list(reader)
        columns = reader.fieldnames or []
        is_epochs = columns in (EPOCH_COLUMNS, EARLIER_COLUMNS)
        if not is_epochs and columns[:1] != ["step"]:
            raise ValueError(f"its columns are {reader.fieldnames}")
        first, *rest = columns
        number = _number_or_nan if first == "step" else float  # an epoch has no empty cells
        history = [
            {first: int(row[first]), **{name: number(row[name]) for name in rest}} for row in rows
        ]
        # The range of epochs and steps in tables and pictures.
        if wrong := [row[first] for row in history if not 0 <= row[first] < 2**31]:
            raise ValueError(f"it has {first} {wrong[0]}")
        return history
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise RecordError(f"{folder / 'history.csv'}: not a history: {str(error)[:200]}") from None


EPOCH_COLUMNS = [field.name for field in fields(Epoch)]
# Of earlier versions.
EARLIER_COLUMNS = EPOCH_COLUMNS[:-2]


def _as_row(epoch: Epoch) -> dict[str, float]:
    """Return the figures of an epoch that are known, by name."""
    return {name: value for name, value in asdict(epoch).items() if value is not None}


def _number_or_nan(text: str) -> float:
    return float(text) if text else math.nan


def step_number(row: Mapping[str, float]) -> int:
    """Return the epoch or step of a row of a history."""
    return int(next(iter(row.values())))


def finish(folder: Path, state: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Write a run's final row, or update the row that the training has written.

    Args:
        folder: the run folder.
        state: COMPLETE, PAUSED, PRUNED or FAILED.
        reason: one line that says why the run is not complete.
        more: further columns of the row.

    Returns:
        The content of `summary.json`.
    """
    known = summary(folder) or {}
    values = {**known, **more, "state": state, "reason": reason}
    if values != known:
        write_json(folder, "summary.json", values)
    return values


def has_ended(folder: Path) -> bool:
    """Return whether a run has its final row, which says anything but that it is paused."""
    row = summary(folder)
    return row is not None and row.get("state") != "PAUSED"


def summary(folder: Path) -> dict[str, Any] | None:
    """Read a run's final row, or that of a paused run; None if the run has neither.

    Raises:
        RecordError: `summary.json` is not a JSON object.
    """
    try:
        return read_json(folder, "summary.json")
    except FileNotFoundError:
        return None


def write_json(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Write a JSON object, keys in the given order. NaN, which JSON lacks, becomes null."""
    finite = {k: None if isinstance(v, float) and v != v else v for k, v in values.items()}
    write_atomically(folder / name, json.dumps(finite, indent=2, allow_nan=True) + "\n")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        OSError: the file is missing or unreadable.
        RecordError: the file is not a JSON object.
    """
    try:
        values = json.loads(read_text(folder / name))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{folder / name}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RecordError(f"{folder / name}: not a JSON object")
    return values


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        OSError: the file is missing or unreadable.
        ValueError: it is not UTF-8, no regular file (a pipe has no end) or larger than `LARGEST`.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > LARGEST:
        raise ValueError(f"it has {status.st_size:,} bytes")
    return path.read_text(encoding="utf-8")


class _LoaderWithoutAliases(yaml.SafeLoader):
    """A loader that refuses aliases: Hydra writes none, and a few can expand beyond memory."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """Read a configuration or another YAML file of Hydra's.

    Raises:
        OSError: the file is missing or unreadable.
        RecordError: the file is not YAML or has aliases.
    """
    try:
        return yaml.load(read_text(path), _LoaderWithoutAliases)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise RecordError(f"{path}: not YAML as Hydra writes it: {text[:200]}") from None


_PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "matplotlib")


def environment(**training: Any) -> dict[str, Any]:
    """Return the content of `environment.json`, what a reader needs to judge or repeat a run.

    Args:
        training: further items, such as device and threads; they come first.
    """
    return {
        **training,
        **_installation(),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
    }


@functools.cache
def _installation() -> dict[str, Any]:
    """Return what does not change while a process runs."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        **_git_state(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def _git_state() -> dict[str, Any]:
    """Return the commit of this package's checkout and whether it is dirty; None without one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout.strip()

    try:
        # An installed copy may lie in another project's repository, whose commit is not ours.
        git("ls-files", "--error-unmatch", "record.py")
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
