"""Measure what a sweep costs beside its trials: 500 that do nothing, and their tables again."""

import itertools
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import seconds_of
from benchmarks.empty_trials import TRIALS
from benchmarks.training import timed
from fmnist_sweep.base.files import make_unique_dir
from fmnist_sweep.results import record
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.results.tables import Sweep

EPOCHS = 50
EMPTY = ["-c", "from benchmarks import empty_trials; empty_trials.main()", "-m"]
BARE = ["hydra.sweeper._target_=benchmarks.empty_trials.Bare", "hydra/launcher=basic"]


def measure(root: str, rounds: int) -> dict[str, Any]:
    """Seconds, by round: whole sweeps of 500 trials and of one, with and without a study.

    Also the seconds between the ends of successive trials, and those of a rebuild of the tables
    of 500 trials of 50 epochs.
    """
    seconds: dict[str, Any] = {"study": [], "bare": [], "first": [], "last": [], "rebuild": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            name = f"study{turn}"
            for kind, many, one in (
                ("study", [f"seed=range({TRIALS})", f"name={name}"], ["seed=range(1)"]),
                (
                    "bare",
                    [*BARE, f"hydra.sweeper.n_trials={TRIALS}"],
                    [*BARE, "hydra.sweeper.n_trials=1"],
                ),
            ):
                command = [*EMPTY, f"data.root={root}"]
                all_trials = seconds_of(folder, *command, *many)
                first_trial = seconds_of(folder, *command, *one)
                seconds[kind].append((all_trials - first_trial) / (TRIALS - 1))
            first, last = _gaps(Path(folder, "multirun", name))
            seconds["first"].append(first)
            seconds["last"].append(last)
        made = Path(folder, "made")
        _make_runs(made)
        for _ in range(rounds):
            seconds["rebuild"].append(timed(lambda: _rebuild(made)))
    return seconds


def _gaps(sweep: Path) -> tuple[float, float]:
    """Median seconds from one trial's end to the next, of the first and the last hundred."""
    ends = [(sweep / str(n) / "summary.json").stat().st_mtime for n in range(TRIALS)]
    gaps = [after - before for before, after in itertools.pairwise(ends)]
    return statistics.median(gaps[:100]), statistics.median(gaps[-100:])


def _make_runs(sweep: Path) -> None:
    """Make run folders as a sweep leaves them, without training anything."""
    for number in range(TRIALS):
        run = make_unique_dir(sweep / str(number))
        note = {"trial": number, "params": {"optimizer.lr": 0.001 + number / 1e6}}
        told = {"default": number == 0, "objective": ["val_accuracy"], "direction": ["maximize"]}
        record.write_json(run, "trial.json", {**note, **told})
        figures = (0.001, 1 / 3, 2 / 3, 1 / 7, number / TRIALS, 0.5)
        record.write_history(run, [Epoch(epoch + 1, *figures) for epoch in range(EPOCHS)])
        record.finish(run, "COMPLETE", val_accuracy=number / TRIALS, seed=0, seconds=25.0)


def _rebuild(folder: Path) -> None:
    sweep = Sweep(folder)
    sweep.update()
    sweep.write()


def table(seconds: dict[str, Any]) -> str:
    """Medians in milliseconds a trial, and seconds a rebuild."""
    own = [a - b for a, b in zip(seconds["study"], seconds["bare"])]

    def ms(values: Sequence[float]) -> str:
        each = sorted(1000 * value for value in values)
        return f"{statistics.median(each):.0f} ({each[0]:.0f}-{each[-1]:.0f})"

    rebuild = statistics.median(seconds["rebuild"])
    return "\n".join(
        [
            f"| {TRIALS} trials that do nothing, SQLite | ms a trial |",
            "|---|---|",
            f"| study sweeper, all in all | {ms(seconds['study'])} |",
            f"| Hydra's launcher alone | {ms(seconds['bare'])} |",
            f"| the study sweeper's own cost | {ms(own)} |",
            f"| from end to end, trials 0-100 | {ms(seconds['first'])} |",
            f"| from end to end, trials {TRIALS - 100}-{TRIALS} | {ms(seconds['last'])} |",
            f"\nTables of {TRIALS} trials x {EPOCHS} epochs made again: {rebuild:.2f} s",
        ]
    )
