"""Run a search for some seconds, note when each accuracy was there, and end all its processes."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fmnist_sweep.base.errors import Error

OUTPUT = "output.txt"
LOG = "log.jsonl"
POLL_SECONDS = 1.0
GRACE_SECONDS = 10.0  # for a command to end by itself, once its time is over


def run(
    arguments: Sequence[str], variables: Mapping[str, str], folder: Path, seconds: float
) -> dict[str, Any]:
    """Run Python in a folder until it ends, at most for some seconds.

    Args:
        arguments: Python's arguments.
        variables: environment variables to set.
        folder: the working directory, new and empty. It gets the output. A rival logs its epochs in
            it, and fmnist_sweep makes its sweep in it.
        seconds: the limit, from the start of the process.

    Returns:
        `curve`, [second, accuracy] of each validation accuracy that was the best so far; `trials`
        and `epochs`, the numbers of those that have begun and ended.

    Raises:
        Error: the command failed.
    """
    histories = Histories(folder)
    command = [sys.executable, *arguments]
    with open(folder / OUTPUT, "w", encoding="utf-8") as output:
        began = time.time()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while (left := began + seconds - time.time()) > 0 and process.poll() is None:
                histories.read()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(min(POLL_SECONDS, left))
            code = process.poll()
        finally:
            end(process)
    if code:
        raise Error(f"{folder / OUTPUT}: exit code {code} of {shlex.join(command)}")
    histories.read()
    epochs = [*histories.epochs(), *logged(folder / LOG)]
    return summarised([(when - began, *rest) for when, *rest in epochs if when <= began + seconds])


def summarised(epochs: Sequence[Any]) -> dict[str, Any]:
    """Return the result of `run` for epochs: second, number within the trial, accuracy."""
    curve: list[list[float]] = []
    for second, _, accuracy in sorted(epochs):
        if not curve or accuracy > curve[-1][1]:
            curve.append([round(second, 2), accuracy])
    trials = sum(number == 1 for _, number, _ in epochs)
    return {"curve": curve, "trials": trials, "epochs": len(epochs)}


def logged(log: Path) -> list[tuple[float, int, float]]:
    """Return time, number and accuracy of each epoch that a rival has logged."""
    if not log.exists():
        return []
    # A process that was killed may have left half a line.
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return [(row["time"], row["epoch"], row["accuracy"]) for row in map(json.loads, lines)]


class Histories:
    """The `history.csv` files of a sweep in progress, which are replaced by longer ones.

    Args:
        folder: where the command runs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: dict[Path, list[tuple[float, float]]] = {}
        self.times: dict[Path, float] = {}

    def read(self) -> None:
        """Note the epochs that are new, with the time at which their file was written."""
        for path in self.folder.glob("multirun/*/*/history.csv"):
            written = path.stat().st_mtime
            if self.times.get(path) == written:
                continue
            self.times[path] = written
            with open(path, encoding="utf-8", newline="") as file:
                accuracies = [float(row["val_accuracy"]) for row in csv.DictReader(file)]
            known = self.seen.setdefault(path, [])
            known += [(written, accuracy) for accuracy in accuracies[len(known) :]]

    def epochs(self) -> list[tuple[float, int, float]]:
        """Return time, number within the trial and accuracy of each epoch."""
        return [
            (written, number, accuracy)
            for known in self.seen.values()
            for number, (written, accuracy) in enumerate(known, 1)
        ]


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and all that it has started, also those in sessions of their own."""
    family = _family(process.pid)
    process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()
        # Trackers of shared memory ignore the first signal, and clean up after the others.
        for number in (signal.SIGTERM, signal.SIGKILL):
            limit = time.monotonic() + GRACE_SECONDS
            family = [pid for pid in family if _signalled(pid, number)]
            while family and time.monotonic() < limit:
                time.sleep(0.1)
                family = [pid for pid in family if _signalled(pid, 0)]


def _signalled(pid: int, number: int) -> bool:
    """Send a signal, 0 for none; return whether there is such a process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _family(pid: int) -> list[int]:
    """Return the ids of a process's children, their children and so on."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True
    )
    children: dict[int, list[int]] = {}
    for child, parent in (map(int, line.split()) for line in listed.stdout.splitlines()):
        children.setdefault(parent, []).append(child)
    family = children.get(pid, [])
    for member in family:  # which grows meanwhile
        family += children.get(member, [])
    return family
