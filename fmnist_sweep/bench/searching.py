"""The same 24 trials of `search=mlp` as whole commands: in stacks, by joblib, as published."""

import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd
import torch

from fmnist_sweep.bench import training
from fmnist_sweep.bench.training import ratio, timed

STACKED = "hydra/launcher=stacked"
JOBLIB = "hydra/launcher=joblib, two workers"
STOCK = "the published loop, one trial after the other"
# The same trials whatever they return: drawn at random, none pruned. A fifth of the file's epochs.
SEARCH = (
    "search=mlp",
    "hydra/sweeper/sampler=random",
    "hydra/sweeper/pruner=none",
    "hydra.sweeper.n_trials=24",
    "trainer.epochs=int(interval(1,10))",
)
LAUNCHERS = {
    STACKED: (STACKED,),
    JOBLIB: ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
}


def measure(root: str, rounds: int, cores: int) -> dict[str, list[float]]:
    """Seconds of the whole command, by contender and round; compile caches are warm.

    The published loop is timed for one epoch at each batch size, once a round, and multiplied by
    the epochs that the trials have at that size.
    """
    seconds: dict[str, list[float]] = {name: [] for name in (*LAUNCHERS, STOCK)}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(-1, rounds):
            for name, launcher in LAUNCHERS.items():
                sweep = f"{'stacked' if name == STACKED else 'joblib'}{turn}"
                took = timed(
                    lambda sweep=sweep, launcher=launcher: _run(  # type: ignore[misc]
                        root, folder, [*SEARCH, *launcher, f"name={sweep}"]
                    )
                )
                if turn >= 0:
                    seconds[name].append(took)
            trials = pd.read_csv(Path(folder, f"multirun/stacked{turn}/sweep.csv"))
            if turn >= 0:
                seconds[STOCK].append(_published(root, trials, cores))
    return seconds


def _run(root: str, folder: str, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "fmnist_sweep.train", "-m", f"data.root={root}", *arguments]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def _published(root: str, trials: pd.DataFrame, cores: int) -> float:
    torch.set_num_threads(cores)
    epochs: Counter[int] = Counter()
    for size, count in zip(trials["data.batch_size"], trials["epochs"]):
        epochs[int(size)] += int(count)
    total = 0.0
    for size, count in epochs.items():
        loop = training.published(root, size)
        total += count * (timed(loop.train) * 50 / 60 + timed(loop.evaluate))
    return total


def table(seconds: dict[str, list[float]]) -> str:
    """Medians, and how many times as long as stacks each takes."""
    lines = ["| 24 trials of search=mlp, whole command | seconds | x stacked |", "|---|---|---|"]
    for name, values in seconds.items():
        median = f"{statistics.median(values):.0f}"
        lines.append(f"| {name} | {median} | {ratio(values, seconds[STACKED])} |")
    return "\n".join(lines)
