"""The command: `python -m fmnist_sweep.bench`."""

import argparse
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from fmnist_sweep import record
from fmnist_sweep.bench import sweeping, training
from fmnist_sweep.data import source
from fmnist_sweep.data.idx import DataError


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--root", default="data", help="data.root (default: data)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, at least 3 (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the peers (default: 2)")
    parser.add_argument(
        "--whole", type=int, default=0, help="rounds of whole commands (default: 0)"
    )
    parser.add_argument(
        "--sweep", type=int, default=0, help="rounds of 500 trials that do nothing (default: 0)"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench.json"))
    parser.add_argument("--published-script", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 3 or arguments.threads < 1 or min(arguments.whole, arguments.sweep) < 0:
        sys.exit("--rounds at least 3, --threads at least 1, --whole and --sweep at least 0")
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, on stopping before convergence
        results: dict[str, Any] = {"epochs": training.epochs(root, arguments.rounds, threads)}
    print(training.table(results["epochs"]))
    if arguments.whole:
        results["whole"] = training.whole_commands(root, arguments.whole)
        print("\nTen epochs as a whole command, compile cache warm, seconds (median):")
        whole = results["whole"]
        for name, seconds in whole.items():
            print(f"{name}: {statistics.median(seconds):.1f}")
        print(f"ratio: {training.ratio(whole[training.PUBLISHED], whole[training.OURS])}")
    if arguments.sweep:
        results["sweep"] = sweeping.measure(root, arguments.sweep)
        print("\n" + sweeping.table(results["sweep"]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    record.write_whole(arguments.out, json.dumps({**machine, **results}, indent=2) + "\n")
    print(f"Saved to {arguments.out}")


if __name__ == "__main__":
    main()
