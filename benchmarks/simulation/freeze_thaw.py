"""The sweeper's scheduler `freeze_thaw`, played against a table."""

import numpy as np

from benchmarks.simulation.search import Scheduler, Search, Trial
from fmnist_sweep.sweep.freeze_thaw import Outlook, outlook


class FreezeThaw(Scheduler):
    """Trials train in intervals of epochs, the most promising one first.

    Args:
        search: the trials.
        interval: the epochs after which another trial may take over.
        first: the trials that train an interval before any is chosen.
    """

    def __init__(self, search: Search, interval: int = 2, first: int = 4) -> None:
        super().__init__(search)
        self.interval, self.first = interval, first

    def next(self, current: Trial | None) -> tuple[Trial, int] | None:
        """Continue the most promising trial, or begin one."""
        trials = self.search.trials
        paused = [trial for trial in trials if trial.state == "paused"]
        if len(trials) < self.first or not paused:
            return self._start()
        promised = self._outlook(paused, current)
        best = int(promised.promises.argmax())
        if promised.of_new >= promised.promises[best] and (begun := self._start()):
            return begun
        trial = paused[best]
        return trial, min(trial.epochs + self.interval, trial.limit)

    def _start(self) -> tuple[Trial, int] | None:
        trial = self.search.begin()
        return (trial, min(self.interval, trial.limit)) if trial else None

    def _outlook(self, candidates: list[Trial], current: Trial | None) -> Outlook:
        """Return what trials promise.

        Args:
            candidates: the trials to choose from.
            current: the one among them that need not be resumed.
        """
        seen = [trial for trial in self.search.trials if trial.epochs]
        curves = self.search.curves
        return outlook(
            [curves.accuracy[trial.curve, : trial.epochs] for trial in seen],
            np.array([trial.limit for trial in seen]),
            curves.seconds[[trial.config for trial in seen]],
            [seen.index(trial) for trial in candidates],
            np.array([trial is not current for trial in candidates]) * self.search.clock.resume,
        )
