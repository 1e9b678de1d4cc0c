"""Give epochs to trials: all at once, to the best after one epoch, by a pruner, by promotion."""

from collections.abc import Sequence

import numpy as np
import optuna
from optuna.trial import TrialState

from benchmarks.simulation.search import Scheduler, Search, Trial

LEAST_GAIN = 1e-4  # one validation image in 10,000: what a promotion is worth at least


class Full(Scheduler):
    """Every trial trains all its epochs."""

    def next(self, current: Trial | None) -> tuple[Trial, int] | None:
        """Begin a trial."""
        trial = self.search.begin()
        return (trial, trial.limit) if trial else None


class KeepBest(Scheduler):
    """In rounds: trials train a few epochs, and then the best of the round train all.

    Args:
        search: the trials.
        trials: of a round.
        keep: how many of them train all epochs.
        first: the epochs before that.
    """

    def __init__(self, search: Search, trials: int = 40, keep: int = 4, first: int = 1) -> None:
        super().__init__(search)
        self.trials, self.keep, self.first = trials, keep, first
        self.round: list[Trial] = []
        self.kept: list[Trial] | None = None  # None until all trials of the round have trained

    def next(self, current: Trial | None) -> tuple[Trial, int] | None:
        """Begin a trial of the round, or continue one of its best, or wait for the round."""
        if self.kept is not None and not self.kept:
            self.round, self.kept = [], None
        if self.kept is None:
            if len(self.round) < self.trials and (trial := self.search.begin()):
                self.round.append(trial)
                return trial, self.first
            if not self.round or any(trial.epochs < self.first for trial in self.round):
                return None
            ranked = sorted(self.round, key=lambda trial: trial.best, reverse=True)
            self.kept = ranked[: self.keep]
        trial = self.kept.pop(0)
        return trial, trial.limit


class Pruned(Scheduler):
    """A pruner of Optuna's decides after each epoch whether a trial goes on, for good.

    The pruner's study holds each epoch's accuracy and, as a trial's value, its best accuracy.

    Args:
        search: the trials.
        pruner: decides.
        name: the study's name, from which Hyperband draws the brackets of its trials.
    """

    def __init__(self, search: Search, pruner: optuna.pruners.BasePruner, name: str) -> None:
        super().__init__(search)
        self.study = optuna.create_study(study_name=name, direction="maximize", pruner=pruner)
        self.entries: dict[Trial, optuna.Trial] = {}

    def next(self, current: Trial | None) -> tuple[Trial, int] | None:
        """Continue with the trial, or begin another."""
        if current and self._goes_on(current):
            return current, current.epochs + 1
        trial = self.search.begin()
        if not trial:
            return None
        self.entries[trial] = self.study.ask()
        return trial, 1

    def _goes_on(self, trial: Trial) -> bool:
        entry = self.entries[trial]
        value = float(self.search.curves.accuracy[trial.curve, trial.epochs - 1])
        entry.report(value, trial.epochs)
        if trial.state == "complete":
            self.study.tell(entry, trial.best)
        elif entry.should_prune():
            trial.state = "stopped"
            self.study.tell(entry, state=TrialState.PRUNED)
        return trial.state == "paused"


class Asha(Scheduler):
    """Asynchronous successive halving, with paused trials that can be promoted later.

    Rungs are the epochs `least`, `least * factor`, ... A trial that reaches a rung goes on if its
    best accuracy is among the highest `1 / factor` of all recorded at this rung, and pauses if not.
    A free worker promotes a paused trial that has come among them since, from the highest rung
    first, or else begins a trial. Once all configurations have been tried, it promotes the best
    paused trial of the highest rung.

    Source: Li et al. (2020), "A system for massively parallel hyperparameter tuning", algorithm 2.

    Args:
        search: the trials.
        least: the first rung's epochs.
        factor: the ratio of the epochs of successive rungs.
        by_gain: a free worker promotes by the expected gain per second, not from the highest rung.
    """

    def __init__(
        self, search: Search, least: int = 1, factor: int = 3, by_gain: bool = False
    ) -> None:
        super().__init__(search)
        self.factor, self.by_gain = factor, by_gain
        self.rungs = [least]
        while self.rungs[-1] * factor < search.curves.epochs:
            self.rungs.append(self.rungs[-1] * factor)
        # By rung: the values recorded at it, and the trials that pause there.
        self.values: list[list[float]] = [[] for _ in self.rungs]
        self.paused: list[list[Trial]] = [[] for _ in self.rungs]

    def next(self, current: Trial | None) -> tuple[Trial, int] | None:
        """Go on with the trial, promote a paused one or begin one."""
        if current and current.state != "complete":
            rung = self.rungs.index(current.epochs)
            self.values[rung].append(current.best)
            self.paused[rung].append(current)
            if current.best >= self._bar(rung):
                return self._promote(rung, current)
        promotable = [
            (rung, trial)
            for rung, paused in enumerate(self.paused)
            for trial in paused
            if trial.best >= self._bar(rung)
        ]
        if promotable:
            return self._promote(*self._choose(promotable))
        if trial := self.search.begin():
            return trial, self.rungs[0]
        left = [(rung, trial) for rung, paused in enumerate(self.paused) for trial in paused]
        return self._promote(*self._choose(left)) if left else None

    def _bar(self, rung: int) -> float:
        """Return the least value with which a trial is promoted; infinite if none is."""
        values = self.values[rung]
        count = len(values) // self.factor
        return float(np.partition(values, -count)[-count]) if count else float("inf")

    def _choose(self, trials: Sequence[tuple[int, Trial]]) -> tuple[int, Trial]:
        if self.by_gain:
            return max(trials, key=lambda one: self._gain(*one))
        return max(trials, key=lambda one: (one[0], one[1].best))

    def _gain(self, rung: int, trial: Trial) -> float:
        """Return the expected gain per second of a promotion.

        The trial's accuracy is expected to rise as much as it has risen, on average, from this rung
        to the next one in the trials that have reached both.
        """
        until = self._until(rung, trial)
        rises = [
            float(other.bests[until - 1] - other.bests[self.rungs[rung] - 1])
            for other in self.search.trials
            if other.epochs >= until
        ]
        incumbent = max(other.best for other in self.search.trials if other.epochs)
        gain = trial.best + (float(np.mean(rises)) if rises else 0.0) - incumbent
        seconds = (until - trial.epochs) * float(self.search.curves.seconds[trial.config])
        return max(gain, LEAST_GAIN) / seconds

    def _until(self, rung: int, trial: Trial) -> int:
        return min([*self.rungs[rung + 1 : rung + 2], trial.limit])

    def _promote(self, rung: int, trial: Trial) -> tuple[Trial, int]:
        self.paused[rung].remove(trial)
        return trial, self._until(rung, trial)
