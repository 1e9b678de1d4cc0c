"""Measure the speed of training and sweeps on this machine: `python -m benchmarks [rows]`."""

import argparse
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    commands,
    convolving,
    coordinating,
    overhead,
    own_data,
    stacking,
    sweeping,
    training,
)
from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import record
from fmnist_sweep.task.data import source


@dataclass(frozen=True)
class Row:
    """A benchmark.

    Attributes:
        about: its description in the command's help.
        measure: measures, given the data's root and the command line, and returns JSON data.
        table: formats the results as text.
    """

    about: str
    measure: Callable[[str, argparse.Namespace], Any]
    table: Callable[[Any], str]


ROWS = {
    "epochs": Row(
        "an epoch of training, beside what else there is",
        lambda root, options: training.epochs(root, options.rounds, options.threads),
        training.table,
    ),
    "whole": Row(
        "ten epochs as a whole command",
        lambda root, options: commands.ten_epochs(root, options.rounds, options.threads),
        commands.ten_epochs_table,
    ),
    "overhead": Row(
        "whole commands, beside the training in them",
        lambda root, options: overhead.measure(root, options.rounds, options.threads),
        overhead.table,
    ),
    "stack": Row(
        "trials in stacks, beside one alone and the bare kernels",
        lambda root, options: stacking.measure(root, options.rounds, options.threads),
        stacking.table,
    ),
    "convolve": Row(
        "a CNN and ResNet-18, beside a DataLoader with the same augmentation",
        lambda root, options: convolving.measure(root, options.rounds, options.threads),
        convolving.table,
    ),
    "search": Row(
        "24 trials of search=mlp as whole commands",
        lambda root, options: commands.search(root, options.rounds, options.threads),
        commands.search_table,
    ),
    "sweep": Row(
        "what a sweep of 500 trials costs beside its trials",
        lambda root, options: sweeping.measure(root, options.rounds),
        sweeping.table,
    ),
    "own-data": Row(
        "searches on small data sets, beside scikit-learn's MLPClassifier",
        lambda root, options: own_data.measure(options.rounds),
        own_data.table,
    ),
    "gpu": Row(
        "trials on a CUDA device, up to 256 to a step",
        lambda root, options: stacking.measure_on_gpu(root, options.rounds),
        stacking.gpu_table,
    ),
    "gpu-commands": Row(
        "whole commands on a CUDA device",
        lambda root, options: overhead.measure_on_gpu(root),
        overhead.gpu_table,
    ),
    "coordinate": Row(
        "many workers on one study",
        lambda root, options: coordinating.measure(options.server),
        coordinating.table,
    ),
}
# Run only by name, as they need a CUDA device or --server.
ON_REQUEST = ("gpu", "gpu-commands", "coordinate")


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure on this machine how fast training and sweeps are.",
    )
    parser.add_argument("--root", help="data.root (default: $FMNIST_SWEEP_DATA, or data)")
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
    options = parser.parse_args()
    command.run(lambda: measure(options), explain=_explain)


def measure(options: argparse.Namespace) -> None:
    """Measure the requested rows, print their tables and save the figures.

    Raises:
        ConfigError: a row does not exist, or its requirements are not met.
        DataError: the data set cannot be loaded.
    """
    rows = _rows(options)
    root = str(source.locate(options.root).folder.parent.parent.resolve())
    if options.published_script:
        commands.published_script(root, options.threads)
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    threads = {"peers": options.threads, "ours": 1}
    on_gpu = any(name.startswith("gpu") for name in rows)
    device = torch.cuda.get_device_name() if on_gpu else "cpu"
    machine = record.environment(device=device, threads=threads)
    print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']},")
    print(f"torch {machine['versions']['torch']}; n = {options.rounds} rounds; threads: {threads}")
    results: dict[str, Any] = {}
    for name in rows:
        results[name] = ROWS[name].measure(root, options)
        print("\n" + ROWS[name].table(results[name]))
    if "coordinate" in rows:
        picture = coordinating.picture(results["coordinate"])
        write_atomically(options.out.with_suffix(".png"), picture)
    write_atomically(options.out, json.dumps({**machine, **results}, indent=2) + "\n")
    print(f"Saved to {options.out}")


def _rows(options: argparse.Namespace) -> list[str]:
    """Check the command line and return the rows to measure, in the order of `ROWS`.

    Raises:
        ConfigError: a row does not exist, or its requirements are not met.
    """
    if options.rounds < 1 or options.threads < 1:
        raise ConfigError("--rounds and --threads: must be at least 1")
    if unknown := set(options.rows) - set(ROWS):
        raise ConfigError(f"{', '.join(sorted(unknown))}: no such row; there are {', '.join(ROWS)}")
    if "coordinate" in options.rows and not options.server:
        raise ConfigError("coordinate: needs --server")
    for name in options.rows:
        if name.startswith("gpu") and not torch.cuda.is_available():
            raise ConfigError(f"{name}: no CUDA device here")
    return [name for name in ROWS if name in (options.rows or set(ROWS) - set(ON_REQUEST))]


def _explain(error: Exception) -> str | None:
    """Return the line for a failed command; the command itself has printed the reason."""
    if not isinstance(error, subprocess.CalledProcessError):
        return None
    return f"exit code {error.returncode} of: {' '.join(map(str, error.cmd))}"


if __name__ == "__main__":
    main()
