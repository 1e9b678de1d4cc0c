"""What a run leaves behind: the only reader and writer of run folders.

.hydra/           the configuration, written by Hydra
train.log         what was said on screen, with times
history.csv       one row an epoch
summary.json      one trial's final row; its presence says that the run ended
trial.json        in a sweep: which trial of it this is, and with what values
environment.json  versions, device, threads, git commit, command line
results.png       loss and accuracy curves
model.pt          a state dict for a plain `nn.Module`
checkpoint-0.pt   while it trains, the state of its first repeat at an epoch's end
"""

import csv
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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from fmnist_sweep.base.errors import RecordError
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.base.processes import cores

# No honest text file of a run, a history of half a million epochs, needs more.
LARGEST = 64 * 2**20


@dataclass(frozen=True)
class Epoch:
    """One row of `history.csv`. Losses are mean cross-entropies in nats, accuracies in [0, 1].

    Training figures are running means over the epoch's batches, as the weights change;
    validation figures are of the weights at its end. `seconds` covers both.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float


def escape_csv_formula(value: Any) -> Any:
    """A table's cell: text that a spreadsheet would run as a formula gets an apostrophe before it.

    Source: OWASP, CSV injection.
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def holds_run(folder: Path) -> bool:
    """Whether something was trained here before."""
    return any((folder / name).exists() for name in ("history.csv", "summary.json"))


def holds_sweep(folder: Path) -> bool:
    """Whether a sweep has begun here, or its tables are here."""
    return any((folder / name).exists() for name in ("study.json", "sweep.csv"))


def checkpoint(folder: Path, repeat: int) -> Path:
    """Where the state of a run's repeat is kept while it trains."""
    return folder / f"checkpoint-{repeat}.pt"


def checkpoints(folder: Path) -> dict[int, Path]:
    """What is kept of a run's repeats."""
    names = (
        (path, re.fullmatch(r"checkpoint-(\d{1,9}).pt", path.name)) for path in folder.iterdir()
    )
    return {int(name[1]): path for path, name in names if name}


def is_interrupted(folder: Path) -> bool:
    """Whether a run was trained here for a while that can go on from a checkpoint."""
    return bool(checkpoints(folder)) and not (folder / "summary.json").exists()


def earlier_attempts(folder: Path) -> list[Path]:
    """The folders of earlier attempts at the same run, the newest first: `7-2` and `7` of `7-3`."""
    name = re.fullmatch(r"(.+)-(\d+)", folder.name)
    if not name or not folder.with_name(name[1]).is_dir():
        return []
    found = [(1, folder.with_name(name[1]))]
    for one in folder.parent.glob(f"{glob.escape(name[1])}-*"):
        number = one.name.removeprefix(f"{name[1]}-")
        if number.isdecimal() and 1 < int(number) < int(name[2]) and one.is_dir():
            found.append((int(number), one))
    return [one for _, one in sorted(found, reverse=True)]


def attempts(sweep: Path) -> dict[int, list[Path]]:
    """A sweep's run folders by trial, in order: `3`, `3-2`, ... are the attempts at trial 3."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for folder in sweep.iterdir():
        name = re.fullmatch(r"(\d+)(?:-(\d+))?", folder.name)
        if name and folder.is_dir():
            found.setdefault(int(name[1]), []).append((int(name[2] or 1), folder))
    return {trial: [f for _, f in sorted(found[trial])] for trial in sorted(found)}


def write_history(folder: Path, history: Sequence[Epoch | Mapping[str, float]]) -> None:
    """Writes `history.csv`, with every digit of its numbers.

    Args:
        history: rows of the same first column, `epoch` or `step`; a value that a row lacks is left
            empty.
    """
    rows = [asdict(row) if isinstance(row, Epoch) else row for row in history]
    columns = dict.fromkeys(name for row in rows for name in row) or EPOCH_COLUMNS
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([row.get(name, "") for name in columns] for row in rows)
    write_atomically(folder / "history.csv", text.getvalue())


def read_history(folder: Path) -> list[dict[str, float]]:
    """Reads `history.csv`.

    Returns:
        Its rows, with the epoch or step first, as an integer.

    Raises:
        OSError: there is none.
        RecordError: it is torn, or not a history.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(folder / "history.csv"), newline=""))
        rows = list(reader)
        columns = reader.fieldnames or []
        if columns != EPOCH_COLUMNS and columns[:1] != ["step"]:
            raise ValueError(f"its columns are {reader.fieldnames}")
        first, *rest = columns
        number = _number if first == "step" else float  # an epoch has all its figures
        history = [
            {first: int(row[first]), **{name: number(row[name]) for name in rest}} for row in rows
        ]
        # Tables and pictures hold no others.
        if wrong := [row[first] for row in history if not 0 <= row[first] < 2**31]:
            raise ValueError(f"it has {first} {wrong[0]}")
        return history
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise RecordError(f"{folder / 'history.csv'}: not a history: {str(error)[:200]}") from None


EPOCH_COLUMNS = [field.name for field in fields(Epoch)]


def _number(text: str) -> float:
    return float(text) if text else math.nan


def step_of(row: Mapping[str, float]) -> int:
    """The epoch or step of a history's row."""
    return int(next(iter(row.values())))


def finish(folder: Path, state: str, reason: str | None = None, **more: Any) -> dict[str, Any]:
    """Writes a run's final row, or changes what the training has written.

    Args:
        state: COMPLETE, PRUNED or FAILED.
        reason: one line that says why it is not complete.

    Returns:
        What `summary.json` then holds.
    """
    known = summary(folder) or {}
    values = {**known, **more, "state": state, "reason": reason}
    if values != known:
        write_json(folder, "summary.json", values)
    return values


def summary(folder: Path) -> dict[str, Any] | None:
    """A run's final row, or None for a run that has not ended.

    Raises:
        RecordError: the file is not a summary.
    """
    try:
        return read_json(folder, "summary.json")
    except FileNotFoundError:
        return None


def write_json(folder: Path, name: str, values: Mapping[str, Any]) -> None:
    """Writes a JSON object, keys in the order given. NaN becomes null: JSON has none."""
    finite = {k: None if isinstance(v, float) and v != v else v for k, v in values.items()}
    write_atomically(folder / name, json.dumps(finite, indent=2, allow_nan=True) + "\n")


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        OSError: there is none.
        RecordError: it is not a JSON object.
    """
    try:
        values = json.loads(read_text(folder / name))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{folder / name}: not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RecordError(f"{folder / name}: not a JSON object")
    return values


def read_text(path: Path) -> str:
    """What is in a file.

    Raises:
        OSError: there is none.
        ValueError: it is not text, has no end, as a pipe has none, or is larger than any of ours.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > LARGEST:
        raise ValueError(f"it has {status.st_size:,} bytes")
    return path.read_text(encoding="utf-8")


class _Plain(yaml.SafeLoader):
    """YAML as Hydra writes it: without aliases; a few can stand for more than memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """Reads a configuration or what else Hydra writes.

    Raises:
        OSError: there is none.
        RecordError: it is no YAML, or has aliases.
    """
    try:
        return yaml.load(read_text(path), _Plain)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise RecordError(f"{path}: not YAML as Hydra writes it: {text[:200]}") from None


_PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf", "matplotlib")


def environment(**training: Any) -> dict[str, Any]:
    """What a reader needs to judge or repeat a run; `training` adds device, threads and such."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        **training,
        "python": platform.python_version(),
        "versions": versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        **_git_state(),
        "command": shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()


def _git_state() -> dict[str, Any]:
    """The commit of this package's checkout and whether it was dirty; nulls outside of one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=10, check=True
        ).stdout.strip()

    try:
        # An installed copy may lie inside some other project's repository: not our commit.
        git("ls-files", "--error-unmatch", "record.py")
        return {
            "git_commit": git("rev-parse", "HEAD"),
            "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return {"git_commit": None, "git_dirty": None}
