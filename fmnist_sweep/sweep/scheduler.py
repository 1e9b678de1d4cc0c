"""Schedulers: which trials get further epochs, `hydra.sweeper.scheduler`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from fmnist_sweep.base.schema import Section

# Attributes of a trial in the study: the epochs after which it is paused now (None if it is not),
# and those after which it was paused and has been resumed.
PAUSED, RESUMED = "paused", "resumed"


def is_paused(trial: FrozenTrial) -> bool:
    """Return whether a trial is paused; the study has it among the running trials."""
    return trial.state == TrialState.RUNNING and trial.user_attrs.get(PAUSED) is not None


class Asha(Section):
    """Asynchronous successive halving with promotion, ASHA (Li et al., 2020, arXiv 1810.05934).

    At each rung, a number of epochs, a trial continues if it is among the best 1/factor of the
    trials that have reached the rung; else it is paused. A paused trial is resumed once it is among
    them, since worse trials have come after it. No trial begins while one can be resumed.

    With several brackets (asynchronous Hyperband) trials take turns: the rungs of each bracket
    begin `factor` times later than those of the bracket before.

    The epochs of an application are the steps that it has reported.

    Attributes:
        min_epochs: the first rung of the first bracket; each further rung is `factor` times higher.
        factor: the share of trials that go on is 1/factor.
        brackets: the number of brackets.
    """

    min_epochs: Annotated[int, Field(ge=1)]
    factor: Annotated[int, Field(ge=2)]
    brackets: Annotated[int, Field(ge=1, le=10)]

    @property
    def last_first_rung(self) -> int:
        """The first rung of the last bracket: the smallest number of epochs that is needed."""
        return self._first_rung(self.brackets - 1)

    def is_rung(self, number: int, epochs: int) -> bool:
        """Return whether a trial is decided on after a number of epochs.

        Args:
            number: the trial's number.
            epochs: the epochs that it has been trained.
        """
        return epochs in self._rungs(number % self.brackets, epochs)

    def lets_continue(
        self,
        trials: Sequence[FrozenTrial],
        number: int,
        epochs: int,
        direction: StudyDirection,
        can_pause: bool,
    ) -> bool:
        """Decide on a trial that has reached a rung.

        Args:
            trials: all trials of the study, by number.
            number: the trial's number.
            epochs: the rung.
            direction: that of the study.
            can_pause: whether the trial can be resumed later. Otherwise the first trials at a rung
                would be lost, and the best of them continues.
        """
        resumed = trials[number].user_attrs.get(RESUMED, [])
        if any(epochs <= earlier for earlier in resumed):
            return True
        at_rung = self._values(trials, number % self.brackets, epochs, direction)
        return number in self._best(at_rung, at_least_one=not can_pause)

    def next_to_resume(
        self, trials: Sequence[FrozenTrial], direction: StudyDirection, is_last: bool
    ) -> int | None:
        """Return the number of the paused trial that is resumed next; None if none should be.

        Args:
            trials: all trials of the study, by number.
            direction: that of the study.
            is_last: whether no further trial begins. The best trial of a rung then goes on even if
                the rung has fewer than `factor` trials.
        """
        paused = [trial for trial in trials if is_paused(trial)]
        for trial in paused:  # paused by `hydra.sweeper.timeout`
            if not self.is_rung(trial.number, trial.user_attrs[PAUSED]):
                return trial.number
        rungs = {(t.user_attrs[PAUSED], t.number % self.brackets) for t in paused}
        for rung, bracket in sorted(rungs, reverse=True):
            at_rung = self._values(trials, bracket, rung, direction)
            best = self._best(at_rung, at_least_one=is_last)
            waiting = {trial.number for trial in paused if trial.user_attrs[PAUSED] == rung}
            for number in best:
                if number in waiting:
                    return number
        return None

    def _first_rung(self, bracket: int) -> int:
        return int(self.min_epochs * self.factor**bracket)

    def _rungs(self, bracket: int, up_to: int) -> Iterator[int]:
        rung = self._first_rung(bracket)
        while rung <= up_to:
            yield rung
            rung *= self.factor

    def _values(
        self, trials: Sequence[FrozenTrial], bracket: int, rung: int, direction: StudyDirection
    ) -> dict[int, float]:
        """Return the values at a rung by trial, negated if they are to be minimized."""
        sign = 1 if direction == StudyDirection.MAXIMIZE else -1
        return {
            trial.number: sign * _value_after(trial.intermediate_values, rung)
            for trial in trials
            if trial.number % self.brackets == bracket
            and trial.state != TrialState.FAIL
            and len(trial.intermediate_values) >= rung
        }

    def _best(self, values: Mapping[int, float], at_least_one: bool) -> list[int]:
        """Return the best 1/factor of the trials, best first."""
        count = max(len(values) // self.factor, int(at_least_one))
        return sorted(values, key=lambda number: (-values[number], number))[:count]


def _value_after(values: Mapping[int, float], epochs: int) -> float:
    """Return the value of a trial's epoch, or step, of that rank; NaN counts as the worst value."""
    value = values[sorted(values)[epochs - 1]]
    return -math.inf if math.isnan(value) else value
