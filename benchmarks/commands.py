"""Time whole commands: ten epochs of training, and 24 trials of `search=mlp`.

Ten epochs are trained by the published script and by fmnist_sweep. The 24 trials are trained in
stacks, by joblib and by the published loop.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pandas as pd
import torch

from benchmarks import training
from benchmarks.training import OURS, PUBLISHED, ratio, timed

REPOSITORY = Path(__file__).resolve().parent.parent
STACKED = "hydra/launcher=stacked"
JOBLIB = "hydra/launcher=joblib, two workers"
STOCK = "the published loop, one trial after the other"
# Random without a scheduler, so that results do not affect the trials. Few epochs.
SEARCH = (
    "search=mlp",
    "hydra/sweeper/sampler=random",
    "hydra/sweeper/scheduler=none",
    "hydra.sweeper.n_trials=24",
    "trainer.epochs=int(interval(1,10))",
)
LAUNCHERS = {
    STACKED: (STACKED,),
    JOBLIB: ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
}


def seconds_of(folder: str, *arguments: str, **variables: str) -> float:
    """Run Python in a folder, without its output, and return its duration in seconds.

    The folder's Python finds the benchmarks, which are not installed.

    Args:
        folder: the working directory.
        arguments: Python's arguments.
        variables: environment variables to set.
    """
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **variables}
    command = [sys.executable, *arguments]
    return timed(
        lambda: subprocess.run(
            command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
        )
    )


def ten_epochs(root: str, rounds: int, threads: int) -> dict[str, list[float]]:
    """Measure processes that train ten epochs: the published script and fmnist_sweep.

    Args:
        threads: threads of the published script.

    Returns:
        Seconds of each round by contender.
    """
    script = ["-m", "benchmarks", "--published-script", "--root", root, f"--threads={threads}"]
    commands = {
        PUBLISHED: script,
        OURS: ["-m", "fmnist_sweep.train", "experiment=seed", f"data.root={root}"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        seconds_of(folder, *commands[OURS])  # fills the compile cache
        for _ in range(rounds):
            for name, arguments in commands.items():
                seconds[name].append(seconds_of(folder, *arguments))
    return seconds


def published_script(root: str, threads: int) -> None:
    """Do the same as the published script: train ten epochs and evaluate each."""
    torch.set_num_threads(threads)
    loop = training.published(root)
    for _ in range(10):
        loop.train()
        loop.evaluate()


def ten_epochs_table(seconds: dict[str, list[float]]) -> str:
    """Return the median seconds, and the published script's time relative to fmnist_sweep's."""
    lines = ["Ten epochs as a whole command, compile cache warm, seconds (median):"]
    lines += [f"{name}: {statistics.median(values):.1f}" for name, values in seconds.items()]
    return "\n".join([*lines, f"ratio: {ratio(seconds[PUBLISHED], seconds[OURS])}"])


def search(root: str, rounds: int, threads: int) -> dict[str, list[float]]:
    """Measure a search as a whole command, with warm compile caches.

    In each round the published loop is timed for one epoch at each batch size. The time is
    multiplied by the number of epochs that the trials have at that batch size.

    Args:
        threads: threads of the published loop.

    Returns:
        Seconds of each round by contender.
    """
    seconds: dict[str, list[float]] = {name: [] for name in (*LAUNCHERS, STOCK)}
    command = ("-m", "fmnist_sweep.train", "-m", f"data.root={root}", *SEARCH)
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(-1, rounds):  # turn -1 fills the compile caches
            for name, launcher in LAUNCHERS.items():
                sweep = f"{'stacked' if name == STACKED else 'joblib'}{turn}"
                took = seconds_of(folder, *command, *launcher, f"name={sweep}")
                if turn >= 0:
                    seconds[name].append(took)
            if turn >= 0:
                trials = pd.read_csv(Path(folder, f"multirun/stacked{turn}/sweep.csv"))
                seconds[STOCK].append(_published_search(root, trials, threads))
    return seconds


def _published_search(root: str, trials: pd.DataFrame, threads: int) -> float:
    torch.set_num_threads(threads)
    epochs: Counter[int] = Counter()
    for size, count in zip(trials["data.batch_size"], trials["epochs"]):
        epochs[int(size)] += int(count)
    total = 0.0
    for size, count in epochs.items():
        loop = training.published(root, size)
        total += count * (timed(loop.train) * 50 / 60 + timed(loop.evaluate))
    return total


def search_table(seconds: dict[str, list[float]]) -> str:
    """Return the median seconds, and each contender's time relative to stacks."""
    lines = ["| 24 trials of search=mlp, whole command | seconds | x stacked |", "|---|---|---|"]
    for name, values in seconds.items():
        median = f"{statistics.median(values):.0f}"
        lines.append(f"| {name} | {median} | {ratio(values, seconds[STACKED])} |")
    return "\n".join(lines)
