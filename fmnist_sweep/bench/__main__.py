"""Measures on this machine how fast training and sweeps are: `python -m fmnist_sweep.bench`."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fmnist_sweep import record
from fmnist_sweep.bench import (
    convolving,
    coordinating,
    on_gpu,
    searching,
    stacking,
    sweeping,
    training,
)
from fmnist_sweep.data import source
from fmnist_sweep.data.idx import DataError


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
        lambda root, wish: training.whole_commands(root, wish.rounds),
        training.whole_table,
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
        lambda root, wish: searching.measure(root, wish.rounds, wish.threads),
        searching.table,
    ),
    "sweep": Row(
        "what a sweep of 500 trials costs beside its trials",
        lambda root, wish: sweeping.measure(root, wish.rounds),
        sweeping.table,
    ),
    "gpu": Row(
        "trials on a CUDA device, up to 256 to a step",
        lambda root, wish: on_gpu.measure(root, wish.rounds),
        on_gpu.table,
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
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
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
    parser.add_argument("--out", type=Path, default=Path("outputs/bench.json"))
    parser.add_argument("--published-script", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        sys.exit("--rounds and --threads: must be at least 1")
    rows = arguments.rows or [name for name in ROWS if name not in ON_REQUEST]
    if unknown := set(rows) - set(ROWS):
        sys.exit(f"{', '.join(sorted(unknown))}: no such row; there are {', '.join(ROWS)}")
    if "coordinate" in rows and not arguments.server:
        sys.exit("coordinate: needs --server")
    if "gpu" in rows and not torch.cuda.is_available():
        sys.exit("gpu: no CUDA device here")
    try:
        root = str(source.locate(arguments.root).folder.parent.parent.resolve())
    except DataError as error:
        sys.exit(str(error))
    if arguments.published_script:
        torch.set_num_threads(arguments.threads)
        training.published_script(root)
        return
    threads = {"peers": arguments.threads, "ours": 1}
    device = torch.cuda.get_device_name() if "gpu" in rows else "cpu"
    machine = record.environment(device=device, threads=threads)
    print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']},")
    print(
        f"torch {machine['versions']['torch']}; n = {arguments.rounds} rounds; threads: {threads}"
    )
    results: dict[str, Any] = {}
    for name in [name for name in ROWS if name in rows]:
        results[name] = ROWS[name].measure(root, arguments)
        print("\n" + ROWS[name].table(results[name]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if "coordinate" in rows:
        picture = coordinating.picture(results["coordinate"])
        record.write_whole(arguments.out.with_suffix(".png"), picture)
    record.write_whole(arguments.out, json.dumps({**machine, **results}, indent=2) + "\n")
    print(f"Saved to {arguments.out}")


if __name__ == "__main__":
    main()
