"""Give epochs to the trial whose continued curve promises the most, per second."""

import functools

import numpy as np
from scipy.special import ndtr

from benchmarks.simulation.extrapolation import NOISE, continue_curves
from benchmarks.simulation.search import Curves, Floats, Scheduler, Search, Trial


class FreezeThaw(Scheduler):
    """Trials train in blocks of epochs, the most promising one first.

    A paused trial promises, until some later epoch, the expected improvement of the search's best
    accuracy per second of training; the epoch that promises the most counts. A new trial promises
    the mean of what the trials so far, if they began now, would promise.

    Source of the idea: Swersky et al. (2014), "Freeze-thaw Bayesian optimization". Curves are
    continued one by one, by power laws.

    Args:
        search: the trials.
        block: the epochs after which another trial may take over.
        first: the trials that train a block before any is chosen.
    """

    def __init__(self, search: Search, block: int = 2, first: int = 4) -> None:
        super().__init__(search)
        self.block, self.first = block, first
        self.means, self.deviations = _predictions(search.curves)

    def next(self, current: Trial | None) -> tuple[Trial, int] | None:
        """Continue the most promising trial, or begin one."""
        trials = self.search.trials
        paused = [trial for trial in trials if trial.state == "paused"]
        seen = [trial for trial in trials if trial.epochs]
        if len(trials) < self.first or not seen:
            return self._start()
        best = max(trial.best for trial in seen)
        if not paused:
            return self._start()
        promise = self._paused(paused, current, best)
        if self._new(seen, best) >= promise.max() and (begun := self._start()):
            return begun
        trial = paused[int(promise.argmax())]
        return trial, min(trial.epochs + self.block, trial.limit)

    def _start(self) -> tuple[Trial, int] | None:
        trial = self.search.begin()
        return (trial, min(self.block, trial.limit)) if trial else None

    def _paused(self, trials: list[Trial], current: Trial | None, best: float) -> Floats:
        """Return what trials promise, in accuracy per second [trials]."""
        curve = np.array([trial.curve for trial in trials])
        known = np.array([trial.epochs for trial in trials])
        gain = _improvement(
            self.means[curve, known - 1], self.deviations[curve, known - 1], best
        )  # [trials, epochs]
        ahead = np.arange(1, self.search.curves.epochs + 1) - known[:, None]
        delay = np.array([trial is not current for trial in trials]) * self.search.clock.resume
        epoch = self.search.curves.seconds[[trial.config for trial in trials]]
        seconds = delay[:, None] + np.maximum(ahead, 1) * epoch[:, None]
        promise: Floats = np.where(ahead > 0, gain / seconds, 0.0).max(1)
        return promise

    def _new(self, trials: list[Trial], best: float) -> float:
        """Return what a new trial promises, in accuracy per second."""
        curve = np.array([trial.curve for trial in trials])
        known = np.array([trial.epochs for trial in trials])
        deviations = np.maximum(self.deviations[curve, known - 1], NOISE)
        gain = _improvement(self.means[curve, known - 1], deviations, best).mean(0)
        epoch = self.search.curves.seconds[[trial.config for trial in trials]].mean()
        seconds = self.search.clock.begin + np.arange(1, len(gain) + 1) * epoch
        return float((gain / seconds).max())


@functools.lru_cache(maxsize=2)
def _predictions(curves: Curves) -> tuple[Floats, Floats]:
    return continue_curves(curves.accuracy)


def _improvement(means: Floats, deviations: Floats, best: float) -> Floats:
    """Return the expected improvement of normal variables over the best value."""
    spread = np.maximum(deviations, 1e-9)
    z = (means - best) / spread
    gain: Floats = spread * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
    return gain
