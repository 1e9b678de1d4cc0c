"""Schedulers: which trials get further epochs, `hydra.sweeper.scheduler`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from fmnist_sweep.base.schema import Section

# Attributes of a trial in the study: the epochs after which it is paused now (None if it is not),
# and those after which it was paused and has been resumed.
PAUSED, RESUMED = "paused", "resumed"
EPOCH_SECONDS = "epoch_seconds"  # what an epoch of the trial takes


def is_paused(trial: FrozenTrial) -> bool:
    """Return whether a trial is paused; the study has it among the running trials."""
    return trial.state == TrialState.RUNNING and trial.user_attrs.get(PAUSED) is not None


@dataclass(frozen=True)
class EpochLimit:
    """The number of epochs of each trial.

    Attributes:
        key: the key of the number of epochs; None if there is none.
        default: its value in trials that do not search it.
    """

    key: str | None = None
    default: int | None = None

    def __call__(self, trial: FrozenTrial) -> int | None:
        """Return a trial's number of epochs; None if it is not known."""
        limit: int | None = trial.params.get(self.key, self.default) if self.key else None
        return limit


@dataclass(frozen=True)
class StudyState:
    """The trials of a study, as a scheduler sees them.

    Attributes:
        trials: all trials of the study by number, with one intermediate value for each step.
        direction: that of the values.
        limit: returns a trial's number of epochs.
        can_begin: whether further trials may begin.
    """

    trials: Sequence[FrozenTrial]
    direction: StudyDirection
    limit: EpochLimit
    can_begin: bool

    def curve(self, trial: FrozenTrial) -> np.ndarray:
        """Return a trial's values by epoch, or step, negated if they are to be minimized.

        A value that is not finite becomes the trial's worst one.
        """
        sign = 1 if self.direction == StudyDirection.MAXIMIZE else -1
        steps = sorted(trial.intermediate_values)
        values = sign * np.array([trial.intermediate_values[step] for step in steps])
        finite = values[np.isfinite(values)]
        return np.where(np.isfinite(values), values, finite.min() if len(finite) else 0.0)

    def has_passed(self, number: int, epochs: int) -> bool:
        """Return whether a trial was resumed after so many epochs, or more.

        A trial whose checkpoint is lost comes to an earlier decision again.
        """
        resumed = self.trials[number].user_attrs.get(RESUMED, [])
        return any(epochs <= earlier for earlier in resumed)

    def has_curve(self, trial: FrozenTrial) -> bool:
        """Return whether a trial has a finite value at some step, and has not failed."""
        has_value = any(map(math.isfinite, trial.intermediate_values.values()))
        return has_value and trial.state != TrialState.FAIL


class Scheduler(Protocol):
    """The interface between a sweep and its scheduler.

    Attributes:
        kind: its name.
        first_decision: the smallest number of epochs after which every trial has been decided on.
        prunes: whether it can prune where trials cannot be paused.
    """

    @property
    def kind(self) -> str: ...

    @property
    def first_decision(self) -> int: ...

    @property
    def prunes(self) -> bool: ...

    def decides_after(self, number: int, epochs: int) -> bool:
        """Return whether a trial is decided on after a number of epochs.

        Args:
            number: the trial's number.
            epochs: the epochs that it has been trained.
        """

    def lets_continue(self, study: StudyState, number: int, epochs: int, can_pause: bool) -> bool:
        """Decide on a trial.

        Args:
            study: the trials.
            number: the trial's number.
            epochs: the epochs that it has been trained.
            can_pause: whether the trial can be resumed later.
        """

    def next_to_resume(self, study: StudyState) -> int | None:
        """Return the number of the paused trial that is resumed next; None if none should be."""


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

    kind: Literal["asha"]
    min_epochs: Annotated[int, Field(ge=1)]
    factor: Annotated[int, Field(ge=2)]
    brackets: Annotated[int, Field(ge=1, le=10)]

    @property
    def first_decision(self) -> int:
        """The first rung of the last bracket."""
        return self._first_rung(self.brackets - 1)

    @property
    def prunes(self) -> bool:
        """True: a trial that cannot be paused is pruned at its rung."""
        return True

    def decides_after(self, number: int, epochs: int) -> bool:
        """Return whether a trial has reached a rung."""
        return epochs in self._rungs(number % self.brackets, epochs)

    def lets_continue(self, study: StudyState, number: int, epochs: int, can_pause: bool) -> bool:
        """Decide on a trial that has reached a rung; see `Scheduler`.

        Of trials that cannot be paused, the best one at a rung always continues: otherwise the
        first ones would be lost.
        """
        at_rung = self._values(study, number % self.brackets, epochs)
        return number in self._best(at_rung, at_least_one=not can_pause)

    def next_to_resume(self, study: StudyState) -> int | None:
        """Choose the paused trial that is resumed; see `Scheduler`.

        If no further trial can begin, the best trial of a rung is resumed even if the rung has
        fewer than `factor` trials.
        """
        paused = [trial for trial in study.trials if is_paused(trial)]
        for trial in paused:  # paused by `hydra.sweeper.timeout`
            if not self.decides_after(trial.number, trial.user_attrs[PAUSED]):
                return trial.number
        rungs = {(t.user_attrs[PAUSED], t.number % self.brackets) for t in paused}
        for rung, bracket in sorted(rungs, reverse=True):
            best = self._best(self._values(study, bracket, rung), at_least_one=not study.can_begin)
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

    def _values(self, study: StudyState, bracket: int, rung: int) -> dict[int, float]:
        """Return the values at a rung by trial, negated if they are to be minimized."""
        sign = 1 if study.direction == StudyDirection.MAXIMIZE else -1
        return {
            trial.number: _value_after(trial.intermediate_values, rung, sign)
            for trial in study.trials
            if trial.number % self.brackets == bracket
            and trial.state != TrialState.FAIL
            and len(trial.intermediate_values) >= rung
        }

    def _best(self, values: Mapping[int, float], at_least_one: bool) -> list[int]:
        """Return the best 1/factor of the trials, best first."""
        count = max(len(values) // self.factor, int(at_least_one))
        return sorted(values, key=lambda number: (-values[number], number))[:count]


def _value_after(values: Mapping[int, float], epochs: int, sign: int) -> float:
    """Return the value of a trial's epoch, or step, of that rank times a sign; -inf for NaN."""
    value = sign * values[sorted(values)[epochs - 1]]
    return -math.inf if math.isnan(value) else value
