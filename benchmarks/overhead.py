"""Time whole commands against the training in them: what start, host work and the end cost."""

import csv
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import training
from benchmarks.commands import seconds_of
from benchmarks.training import ratio

TRAIN = ("-m", "fmnist_sweep.train")
# Trials with hardly any training, of which the sweep's own process takes the largest part.
TINY = ("data.train_size=320", "data.val_size=1000", "trainer.epochs=10")
FEW, MANY, VERY_MANY = 16, 216, 2016


def measure(root: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure commands with warm caches, and the first command with cold ones.

    Args:
        root: the data's root.
        rounds: rounds of each command; a published epoch is timed in each.
        threads: threads of the published loop.

    Returns:
        Seconds by round: `single`, `steady` (ten of its epochs), `grid`, `eight`, `published` (one
        epoch), `sweep` and `confirm` of as many trials and epochs; `first`, seconds of the first
        command ever; `host`, seconds of the sweep's own process for each trial.
    """
    torch.set_num_threads(threads)
    loop = training.published(root)
    data = f"data.root={root}"
    single = (*TRAIN, "experiment=seed", data)
    grid = (*TRAIN, "-m", data, "optimizer.lr=0.0001,0.001,0.01")
    rates = "optimizer.lr=0.0001,0.0002,0.0005,0.001,0.002,0.005,0.01,0.02"
    eight = (*TRAIN, "-m", "experiment=seed", data, rates, "trainer.epochs=20")
    seeds = (*TRAIN, "-m", data, "optimizer.lr=0.0005,0.001,0.002", "repeats=5")
    seconds: dict[str, Any] = {
        name: []
        for name in ("single", "steady", "grid", "eight", "published", "sweep", "confirm", "first")
    }
    with tempfile.TemporaryDirectory() as folder:
        with tempfile.TemporaryDirectory() as caches:
            names = ("FMNIST_SWEEP_CACHE", "TORCHINDUCTOR_CACHE_DIR")
            cold = {name: str(Path(caches, name)) for name in names}
            seconds["first"].append(seconds_of(folder, *single, **cold))
        for turn in range(-1, rounds):  # turn -1 fills the caches
            commands: dict[str, Sequence[str]] = {
                "single": (*single, f"hydra.run.dir=single{turn}"),
                "grid": (*grid, f"name=grid{turn}"),
                "eight": (*eight, f"name=eight{turn}"),
                "sweep": (*seeds, f"name=sweep{turn}"),
                "confirm": (
                    *("-m", "fmnist_sweep.confirm", f"multirun/sweep{turn}"),
                    *("--top", "3", "--no-refit"),
                ),
            }
            for name, command in commands.items():
                took = seconds_of(folder, *command)
                if turn >= 0:
                    seconds[name].append(took)
            if turn >= 0:
                seconds["steady"].append(_ten_epochs(Path(folder, f"single{turn}")))
                seconds["published"].append(loop.epoch())
        few, many, very_many = (
            _host_seconds(folder, data, count) for count in (FEW, MANY, VERY_MANY)
        )
    seconds["host"] = [(many - few) / (MANY - FEW), (very_many - many) / (VERY_MANY - MANY)]
    return seconds


def _ten_epochs(run: Path) -> float:
    """Return ten times the median of a run's epochs, the first left out."""
    with open(run / "history.csv", encoding="utf-8", newline="") as file:
        epochs = [float(row["seconds"]) for row in csv.DictReader(file)]
    return 10 * statistics.median(epochs[1:])


def _host_seconds(folder: str, data: str, trials: int) -> float:
    """Return the processor's seconds that a sweep's own process takes, without its workers."""
    sweep = (*TRAIN, "-m", data, *TINY, f"seed=range({trials})")
    process = subprocess.Popen(
        [sys.executable, *sweep], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, f"exit status {status} of {' '.join(sweep)}"
    return usage.ru_utime + usage.ru_stime


def table(seconds: dict[str, Any]) -> str:
    """Return each command's median and its relation to the training in it, as Markdown."""
    eight_published = [160 * value for value in seconds["published"]]
    rows = [
        ("ten epochs, x ten of its steady epochs", "single", seconds["steady"], False),
        ("a grid of three rates, in published epochs", "grid", seconds["published"], False),
        ("eight trials of 20 epochs, published loop x ours", "eight", eight_published, True),
        (
            "three candidates on five seeds, x the sweep of the same",
            "confirm",
            seconds["sweep"],
            False,
        ),
    ]
    lines = ["| whole command | seconds | ratio |", "|---|---|---|"]
    for about, name, others, is_inverse in rows:
        mine = seconds[name]
        text = ratio(others, mine, 2) if is_inverse else ratio(mine, others, 2)
        lines.append(f"| {about} | {statistics.median(mine):.1f} | {text} |")
    (first,) = seconds["first"]
    extra = first - statistics.median(seconds["single"])
    few, many = (1000 * value for value in seconds["host"])
    return "\n".join(
        [
            *lines,
            f"\nThe first command ever takes {extra:.0f} s more than {first - extra:.0f} s.",
            f"The sweep's process works {few:.0f} ms for a trial in {MANY}, {many:.0f} in "
            f"{VERY_MANY:,}.",
        ]
    )


def measure_on_gpu(root: str) -> dict[str, float]:
    """Measure whole commands on a CUDA device, once each, after a first run of the baseline.

    Returns:
        Seconds by command, less those of `import torch`.
    """
    data, device = f"data.root={root}", "trainer.device=cuda"
    search = (*TRAIN, "-m", "search=lr", "trainer.epochs=10", data, device)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        seconds_of(folder, *TRAIN, data, device)
        torch_alone = min(seconds_of(folder, "-c", "import torch") for _ in range(2))
        for about, command in {
            "the baseline of ten epochs": (*TRAIN, data, device),
            "search=lr, 256 trials of ten epochs": (*search, "hydra.sweeper.n_trials=256"),
            "search=lr, 1,024 trials of ten epochs": (*search, "hydra.sweeper.n_trials=1024"),
        }.items():
            seconds[about] = seconds_of(folder, *command) - torch_alone
    return seconds


def gpu_table(seconds: dict[str, float]) -> str:
    """Return the seconds of each command as Markdown."""
    lines = ["| whole command on a GPU, beyond `import torch` | seconds |", "|---|---|"]
    return "\n".join([*lines, *(f"| {about} | {took:.1f} |" for about, took in seconds.items())])
