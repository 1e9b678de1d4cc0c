"""Measure a sweep's overhead with 500 empty trials, and the time to rebuild its tables."""

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
    """Measure sweeps of 500 empty trials, with the study sweeper and with Hydra's launcher alone.

    Returns:
        By round: `study` and `bare`, seconds per trial with and without a study; `first` and
        `last`, median seconds between the ends of successive trials among the first and the last
        hundred; `rebuild`, seconds to rebuild the tables of 500 trials of 50 epochs.
    """
    seconds: dict[str, Any] = {"study": [], "bare": [], "first": [], "last": [], "rebuild": []}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            name = f"study{turn}"
            for sweeper, many, single in (
                ("study", [f"seed=range({TRIALS})", f"name={name}"], ["seed=range(1)"]),
                (
                    "bare",
                    [*BARE, f"hydra.sweeper.n_trials={TRIALS}"],
                    [*BARE, "hydra.sweeper.n_trials=1"],
                ),
            ):
                command = [*EMPTY, f"data.root={root}"]
                all_trials = seconds_of(folder, *command, *many)
                first_trial = seconds_of(folder, *command, *single)
                seconds[sweeper].append((all_trials - first_trial) / (TRIALS - 1))
            first, last = _gaps(Path(folder, "multirun", name))
            seconds["first"].append(first)
            seconds["last"].append(last)
        synthetic = Path(folder, "made")
        _make_runs(synthetic)
        for _ in range(rounds):
            seconds["rebuild"].append(timed(lambda: _rebuild(synthetic)))
    return seconds


def _gaps(sweep: Path) -> tuple[float, float]:
    """Return the median seconds between trial ends, among the first and the last hundred trials."""
    ends = [(sweep / str(n) / "summary.json").stat().st_mtime for n in range(TRIALS)]
    gaps = [after - before for before, after in itertools.pairwise(ends)]
    return statistics.median(gaps[:100]), statistics.median(gaps[-100:])


def _make_runs(sweep: Path) -> None:
    """Create run folders as a sweep leaves them, without training."""
    for number in range(TRIALS):
        run = make_unique_dir(sweep / str(number))
        trial = {
            "trial": number,
            "params": {"optimizer.lr": 0.001 + number / 1e6},
            "default": number == 0,
            "objective": ["val_accuracy"],
            "direction": ["maximize"],
        }
        record.write_json(run, "trial.json", trial)
        figures = (0.001, 1 / 3, 2 / 3, 1 / 7, number / TRIALS, 0.5)
        record.write_history(run, [Epoch(epoch + 1, *figures) for epoch in range(EPOCHS)])
        record.finish(run, "COMPLETE", val_accuracy=number / TRIALS, seed=0, seconds=25.0)


def _rebuild(folder: Path) -> None:
    sweep = Sweep(folder)
    sweep.update()
    sweep.write()


def table(seconds: dict[str, Any]) -> str:
    """Return the medians and ranges: milliseconds per trial, seconds per rebuild."""
    overhead = [a - b for a, b in zip(seconds["study"], seconds["bare"])]

    def ms(values: Sequence[float]) -> str:
        ordered = sorted(1000 * value for value in values)
        return f"{statistics.median(ordered):.0f} ({ordered[0]:.0f}-{ordered[-1]:.0f})"

    rebuild = statistics.median(seconds["rebuild"])
    return "\n".join(
        [
            f"| {TRIALS} trials that do nothing, SQLite | ms a trial |",
            "|---|---|",
            f"| study sweeper, all in all | {ms(seconds['study'])} |",
            f"| Hydra's launcher alone | {ms(seconds['bare'])} |",
            f"| the study sweeper's own cost | {ms(overhead)} |",
            f"| from end to end, trials 0-100 | {ms(seconds['first'])} |",
            f"| from end to end, trials {TRIALS - 100}-{TRIALS} | {ms(seconds['last'])} |",
            f"\nTables of {TRIALS} trials x {EPOCHS} epochs made again: {rebuild:.2f} s",
        ]
    )
