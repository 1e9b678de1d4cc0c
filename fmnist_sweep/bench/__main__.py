"""Measures on this machine how fast training and sweeps are: `python -m fmnist_sweep.bench`."""

import argparse
import json
import statistics
import sys
import warnings
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

ROWS = {
    "epochs": "an epoch of training, beside what else there is",
    "whole": "ten epochs as a whole command",
    "stack": "trials in stacks, beside one alone and the bare kernels",
    "convolve": "a CNN and ResNet-18, beside a DataLoader with the same augmentation",
    "search": "24 trials of search=mlp as whole commands",
    "sweep": "what a sweep of 500 trials costs beside its trials",
}
# Asked for by name alone, as they need --server and a CUDA device.
COORDINATE, GPU = "coordinate", "gpu"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--root", default="data", help="data.root (default: data)")
    parser.add_argument(
        "rows", nargs="*", metavar="row", help="; ".join(f"{k}: {v}" for k, v in ROWS.items())
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the peers (default: 2)")
    parser.add_argument(
        "--server",
        help=f"PostgreSQL server for the row {COORDINATE} (many workers on one study, directly and "
        "through Optuna's proxy), such as postgresql+psycopg://me@localhost:5432/postgres",
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench.json"))
    parser.add_argument("--published-script", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.threads < 1:
        sys.exit("--rounds and --threads: must be at least 1")
    rows = arguments.rows or list(ROWS)
    if unknown := set(rows) - {*ROWS, COORDINATE, GPU}:
        known = ", ".join([*ROWS, COORDINATE, GPU])
        sys.exit(f"{', '.join(sorted(unknown))}: no such row; there are {known}")
    if COORDINATE in rows and not arguments.server:
        sys.exit(f"{COORDINATE}: needs --server")
    if GPU in rows and not torch.cuda.is_available():
        sys.exit(f"{GPU}: no CUDA device here")
    try:
        root = str(source.locate(arguments.root).folder.parent.parent.resolve())
    except DataError as error:
        sys.exit(str(error))
    if arguments.published_script:
        torch.set_num_threads(arguments.threads)
        training.published_script(root)
        return
    threads = {"peers": arguments.threads, "ours": 1}
    machine = record.environment(device="cpu", threads=threads)
    print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']},")
    print(
        f"torch {machine['versions']['torch']}; n = {arguments.rounds} rounds; threads: {threads}"
    )
    results: dict[str, Any] = {}
    if "epochs" in rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scikit-learn's, on stopping before convergence
            results["epochs"] = training.epochs(root, arguments.rounds, threads)
        print("\n" + training.table(results["epochs"]))
    if "whole" in rows:
        results["whole"] = whole = training.whole_commands(root, arguments.rounds)
        print("\nTen epochs as a whole command, compile cache warm, seconds (median):")
        for name, seconds in whole.items():
            print(f"{name}: {statistics.median(seconds):.1f}")
        print(f"ratio: {training.ratio(whole[training.PUBLISHED], whole[training.OURS])}")
    if "stack" in rows:
        results["stack"] = stacking.measure(root, arguments.rounds, arguments.threads)
        print("\n" + stacking.table(results["stack"]))
    if "convolve" in rows:
        results["convolve"] = convolving.measure(root, arguments.rounds, arguments.threads)
        print("\n" + convolving.table(results["convolve"]))
    if "search" in rows:
        results["search"] = searching.measure(root, arguments.rounds, arguments.threads)
        print("\n" + searching.table(results["search"]))
    if "sweep" in rows:
        results["sweep"] = sweeping.measure(root, arguments.rounds)
        print("\n" + sweeping.table(results["sweep"]))
    if GPU in rows:
        results[GPU] = on_gpu.measure(root, arguments.rounds)
        print("\n" + on_gpu.table(results[GPU]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    if COORDINATE in rows:
        results[COORDINATE] = coordinating.measure(arguments.server)
        print("\n" + coordinating.table(results[COORDINATE]))
        picture = arguments.out.with_suffix(".png")
        record.write_whole(picture, coordinating.picture(results[COORDINATE]))
    record.write_whole(arguments.out, json.dumps({**machine, **results}, indent=2) + "\n")
    print(f"Saved to {arguments.out}")


if __name__ == "__main__":
    main()
