"""Measure on this machine how fast training and sweeps are: `python -m benchmarks [rows]`."""

import argparse
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import commands, convolving, coordinating, stacking, sweeping, training
from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import record
from fmnist_sweep.task.data import source


@dataclass(frozen=True)
class Row:
    """What can be measured: given the data's root and the command line, and its table."""

    about: str
    measure: Callable[[str, argparse.Namespace], Any]
    table: Callable[[Any], str]


ROWS = {
    "epochs": Row(
        "an epoch of training, beside what else there is",
        lambda root, wish: training.epochs(root, wish.rounds, wish.threads),
        training.table,
    ),
    "whole": Row(
        "ten epochs as a whole command",
        lambda root, wish: commands.ten_epochs(root, wish.rounds, wish.threads),
        commands.ten_epochs_table,
    ),
    "stack": Row(
        "trials in stacks, beside one alone and the bare kernels",
        lambda root, wish: stacking.measure(root, wish.rounds, wish.threads),
        stacking.table,
    ),
    "convolve": Row(
        "a CNN and ResNet-18, beside a DataLoader with the same augmentation",
        lambda root, wish: convolving.measure(root, wish.rounds, wish.threads),
        convolving.table,
    ),
    "search": Row(
        "24 trials of search=mlp as whole commands",
        lambda root, wish: commands.search(root, wish.rounds, wish.threads),
        commands.search_table,
    ),
    "sweep": Row(
        "what a sweep of 500 trials costs beside its trials",
        lambda root, wish: sweeping.measure(root, wish.rounds),
        sweeping.table,
    ),
    "gpu": Row(
        "trials on a CUDA device, up to 256 to a step",
        lambda root, wish: stacking.measure_on_gpu(root, wish.rounds),
        stacking.gpu_table,
    ),
    "coordinate": Row(
        "many workers on one study",
        lambda root, wish: coordinating.measure(wish.server),
        coordinating.table,
    ),
}
# Asked for by name alone, as they need a CUDA device and --server.
ON_REQUEST = ("gpu", "coordinate")


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure on this machine how fast training and sweeps are.",
    )
    parser.add_argument("--root", default="data", help="data.root (default: data)")
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="row",
        help="; ".join(f"{name}: {row.about}" for name, row in ROWS.items())
        + f" (default: all but {' and '.join(ON_REQUEST)})",
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the peers (default: 2)")
    parser.add_argument(
        "--server",
        help="PostgreSQL server for the row coordinate (directly and through Optuna's proxy), such "
        "as postgresql+psycopg://me@localhost:5432/postgres",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/bench.json"),
        help="where the figures are saved (default: outputs/bench.json)",
    )
    parser.add_argument("--published-script", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    command.run(lambda: measure(arguments), explain=_explain)


def measure(wish: argparse.Namespace) -> None:
    """Measure the rows that are asked for, show their tables and save their figures.

    Raises:
        ConfigError: there is no such row, or not what it needs.
        DataError: the data set cannot be had.
    """
    rows = _rows(wish)
    root = str(source.locate(wish.root).folder.parent.parent.resolve())
    if wish.published_script:
        commands.published_script(root, wish.threads)
        return
    wish.out.parent.mkdir(parents=True, exist_ok=True)
    threads = {"peers": wish.threads, "ours": 1}
    device = torch.cuda.get_device_name() if "gpu" in rows else "cpu"
    machine = record.environment(device=device, threads=threads)
    print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']},")
    print(f"torch {machine['versions']['torch']}; n = {wish.rounds} rounds; threads: {threads}")
    results: dict[str, Any] = {}
    for name in rows:
        results[name] = ROWS[name].measure(root, wish)
        print("\n" + ROWS[name].table(results[name]))
    if "coordinate" in rows:
        picture = coordinating.picture(results["coordinate"])
        write_atomically(wish.out.with_suffix(".png"), picture)
    write_atomically(wish.out, json.dumps({**machine, **results}, indent=2) + "\n")
    print(f"Saved to {wish.out}")


def _rows(wish: argparse.Namespace) -> list[str]:
    """Check what is asked for and return the rows, in the order in which they are measured.

    Raises:
        ConfigError: there is no such row, or not what it needs.
    """
    if wish.rounds < 1 or wish.threads < 1:
        raise ConfigError("--rounds and --threads: must be at least 1")
    if unknown := set(wish.rows) - set(ROWS):
        raise ConfigError(f"{', '.join(sorted(unknown))}: no such row; there are {', '.join(ROWS)}")
    if "coordinate" in wish.rows and not wish.server:
        raise ConfigError("coordinate: needs --server")
    if "gpu" in wish.rows and not torch.cuda.is_available():
        raise ConfigError("gpu: no CUDA device here")
    return [name for name in ROWS if name in (wish.rows or set(ROWS) - set(ON_REQUEST))]


def _explain(error: Exception) -> str | None:
    """Return the line for a command that failed, which has said why itself."""
    if not isinstance(error, subprocess.CalledProcessError):
        return None
    return f"exit code {error.returncode} of: {' '.join(map(str, error.cmd))}"


if __name__ == "__main__":
    main()
