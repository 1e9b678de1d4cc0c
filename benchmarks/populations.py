"""Compare population-based training with other searches of as many epochs.

    python -m benchmarks.populations --seeds 10        # an hour and a half on two idle cores

All search the space of `search=pbt` on the baseline's network. Each sweep's winner is then trained
on three fresh seeds; of a population that is the schedule of its best trial. Goes on where it was
interrupted.
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.commands import seconds_of
from fmnist_sweep.base import command
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import record
from fmnist_sweep.task.confirm.candidates import FIRST_SEED
from fmnist_sweep.task.confirm.verdict import mean
from fmnist_sweep.task.data import source

EPOCHS, TRIALS = 20, 16  # as many epochs as these trials have, for each contender
BUDGET = EPOCHS * TRIALS
KEPT = 8  # trials that go on after one epoch
PBT = "population-based training"
CONTENDERS: Mapping[str, Sequence[str]] = {
    PBT: (f"hydra.sweeper.n_trials={TRIALS}",),
    "random search": ("hydra/sweeper/scheduler=none", f"hydra.sweeper.n_trials={TRIALS}"),
    "TPE with freeze_thaw": (
        *("hydra/sweeper/sampler=tpe", "hydra/sweeper/scheduler=freeze_thaw"),
        *(f"hydra.sweeper.n_trials={4 * TRIALS}", f"hydra.sweeper.max_epochs={BUDGET}"),
    ),
    "one epoch, the best go on": (
        *("hydra/sweeper/scheduler=asha", f"hydra.sweeper.scheduler.factor={EPOCHS}"),
        f"hydra.sweeper.n_trials={BUDGET - KEPT * (EPOCHS - 1)}",
    ),
}
FRESH = 3


def measure(root: str, seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """Run the sweeps that `out` has not yet, with their confirmations.

    Args:
        root: data.root.
        seeds: seeds of the sampler and of the training.
        out: the folder of the sweeps and of `results.json`.

    Returns:
        The content of `results.json`: the environment, and `runs` by contender and seed.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.json"
    results: dict[str, Any] = {**record.environment(device="cpu"), "runs": {}}
    if file.exists():
        results = json.loads(file.read_text(encoding="utf-8"))
    for seed in seeds:
        for number, (name, overrides) in enumerate(CONTENDERS.items()):
            runs = results["runs"].setdefault(name, {})
            if str(seed) in runs:
                continue
            folder = out / "multirun" / f"{number}-{seed}"
            shutil.rmtree(folder, ignore_errors=True)
            seconds = seconds_of(
                str(out), "-m", "fmnist_sweep.train", "-m", "search=pbt", *overrides,
                f"seed={seed}", f"trainer.epochs={EPOCHS}", f"data.root={root}",
                f"name={folder.name}",
            )  # fmt: skip
            again = out / "fresh" / folder.name
            shutil.rmtree(again, ignore_errors=True)
            seconds_of(
                str(out), "-m", "fmnist_sweep.train", f"from=multirun/{folder.name}",
                f"seed={FIRST_SEED}", f"repeats={FRESH}", f"hydra.run.dir=fresh/{folder.name}",
            )  # fmt: skip
            runs[str(seed)] = _figures(folder, again) | {"seconds": seconds}
            write_atomically(file, json.dumps(results, indent=1) + "\n")
            print(f"{name}, seed {seed}: {runs[str(seed)]}", flush=True)
    return results


def _figures(folder: Path, again: Path) -> dict[str, float]:
    trials = pd.read_csv(folder / "sweep.csv")
    return {
        "found": float(trials.loc[trials["state"] == "COMPLETE", "val_accuracy"].max()),
        "fresh": (record.summary(again) or {})["val_accuracy"],
        "epochs": int(trials["epochs"].sum()),
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the accuracies and their paired differences to random search as Markdown, in %."""
    runs = results["runs"]
    random = runs["random search"]
    lines = [
        "| validation accuracy, % | n | best trial | its configuration on fresh seeds | the same "
        "less random search's | epochs | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, by_seed in runs.items():
        paired = [
            run["fresh"] - random[seed]["fresh"] for seed, run in by_seed.items() if seed in random
        ]
        cells = [
            *(_interval([run[key] for run in by_seed.values()]) for key in ("found", "fresh")),
            "" if by_seed is random else _interval(paired, sign="+"),
            *(
                f"{mean([run[key] for run in by_seed.values()]).mean:.0f}"
                for key in ("epochs", "seconds")
            ),
        ]
        lines.append(f"| {' | '.join([name, str(len(by_seed)), *cells])} |")
    lines += ["", "Means over the seeds, ± half of the 95 % t interval."]
    return "\n".join(lines)


def _interval(values: Sequence[float], sign: str = "") -> str:
    found = mean(values)
    reach = "" if found.high is None else f" ± {100 * (found.high - found.mean):.2f}"
    return f"{100 * found.mean:{sign}.2f}{reach}"


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.populations", description=__doc__)
    parser.add_argument("--root", help="data.root (default: $FMNIST_SWEEP_DATA, or data)")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds (default: 10)")
    parser.add_argument("--out", type=Path, default=Path("outputs/populations"), help="folder")
    options = parser.parse_args()

    def run() -> None:
        root = str(source.locate(options.root).folder.parent.parent.resolve())
        print("\n" + table(measure(root, range(options.seeds), options.out)))

    command.run(run)


if __name__ == "__main__":
    main()
