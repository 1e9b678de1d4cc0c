"""Population-based training: who copies whom, and with which values it continues."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from pydantic import Field

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.schema import Section
from fmnist_sweep.results.keys import is_below
from fmnist_sweep.sweep.scheduler import StudyState, is_paused
from fmnist_sweep.sweep.task import Task

Range = FloatDistribution | IntDistribution


class Copy(NamedTuple):
    """A trial that continues from another trial's state, with other values.

    target: the trial that continues.
    source: the trial whose state it takes over.
    values: the target's values by key from now on.
    """

    target: int
    source: int
    values: dict[str, float]


class Pbt(Section):
    """Population-based training (Jaderberg et al., 2017, arXiv 1711.09846).

    All trials train side by side. Every few epochs the worst of them copy the state of the best,
    and continue from there with changed values.

    Attributes:
        interval: the epochs between two exchanges.
        quantile: the share of the trials that copy, and from which they copy; at least one trial.
        resample: the probability that a value is drawn anew from its range.
        step: otherwise it moves up or down by this share of its range, on the range's scale.
    """

    kind: Literal["pbt"]
    interval: Annotated[int, Field(ge=1)]
    quantile: Annotated[float, Field(gt=0, le=0.5)]
    resample: Annotated[float, Field(ge=0, le=1)]
    step: Annotated[float, Field(gt=0, le=1)]

    @property
    def first_decision(self) -> int:
        """The number of epochs before the first exchange."""
        return self.interval

    @property
    def prunes(self) -> bool:
        """False: all trials train to their end."""
        return False

    def decides_after(self, number: int, epochs: int) -> bool:
        """Return False: no trial ends early; see `scheduler.Scheduler`."""
        return False

    def lets_continue(self, study: StudyState, number: int, epochs: int, can_pause: bool) -> bool:
        """Return True; see `scheduler.Scheduler`."""
        return True

    def next_to_resume(self, study: StudyState) -> int | None:
        """Return the first trial that `hydra.sweeper.timeout` has paused."""
        return next((trial.number for trial in study.trials if is_paused(trial)), None)

    def exchanges_after(self, epoch: int, epochs: int) -> bool:
        """Return whether there is an exchange after an epoch of trials of so many epochs."""
        return epoch % self.interval == 0 and epoch < epochs

    def exchange(
        self,
        scores: Mapping[int, float],
        values: Mapping[int, Mapping[str, float]],
        space: Mapping[str, Range],
        generator: np.random.Generator,
    ) -> list[Copy]:
        """Decide who copies whom.

        Args:
            scores: how good each trial is, by number; more is better, NaN is worst.
            values: each trial's values by key.
            space: the ranges of the keys.
            generator: draws the sources and the changes.

        Returns:
            The copies, the worst trial's first. No source is a target too.
        """
        count = min(max(1, int(self.quantile * len(scores))), len(scores) // 2)
        score = {n: -math.inf if math.isnan(value) else value for n, value in scores.items()}
        best_first = sorted(score, key=lambda number: (-score[number], number))
        best, worst = best_first[:count], best_first[len(best_first) - count :]
        copies = []
        for target in reversed(worst):
            source = best[int(generator.integers(count))]
            changed = {
                key: self._changed(values[source][key], space[key], generator) for key in space
            }
            copies.append(Copy(target, source, changed))
        return copies

    def _changed(self, value: float, range: Range, generator: np.random.Generator) -> float:
        draws_anew, share, up = generator.random(3)
        if draws_anew < self.resample:
            return _at(float(share), range)
        moved = _position(value, range) + (self.step if up < 0.5 else -self.step)
        return _at(min(max(moved, 0.0), 1.0), range)


class Population(NamedTuple):
    """A sweep whose trials form a population.

    pbt: decides who copies whom.
    folder: the sweep's folder.
    space: the ranges of the searched keys.
    objective: the metric by which the trials are ranked.
    direction: `minimize` or `maximize`.
    n_trials: the number of trials.
    """

    pbt: Pbt
    folder: Path
    space: Mapping[str, Range]
    objective: str
    direction: str
    n_trials: int


def _position(value: float, range: Range) -> float:
    """Return the position of a value in its range, from 0 to 1, on the range's scale."""
    if range.high == range.low:
        return 0.0
    if range.log:
        return math.log(value / range.low) / math.log(range.high / range.low)
    return (value - range.low) / (range.high - range.low)


def _at(position: float, range: Range) -> float:
    """Return the value at a position of a range, as `_position` returns it."""
    if range.log:
        value = range.low * (range.high / range.low) ** position
    else:
        value = range.low + position * (range.high - range.low)
    if range.step is not None:
        value = range.low + round((value - range.low) / range.step) * range.step
    value = min(max(value, range.low), range.high)
    return int(value) if isinstance(range, IntDistribution) else float(value)


def ranges(space: Mapping[str, BaseDistribution]) -> dict[str, Range]:
    """Return the distributions that are ranges of numbers."""
    return {
        key: found
        for key, found in space.items()
        if isinstance(found, FloatDistribution | IntDistribution)
    }


def check(space: Mapping[str, BaseDistribution], n_trials: int, task: Task) -> None:
    """Check that a sweep's trials can be a population.

    Args:
        space: the distributions of the searched keys.
        n_trials: the number of trials.
        task: the application.

    Raises:
        ConfigError: one line with what is in the way.
    """
    if not task.changeable_keys:
        raise ConfigError(
            "hydra/sweeper/scheduler=pbt: needs an application whose trials take other values in "
            "mid-training (Task.changeable_keys); choose asha, which prunes instead"
        )
    if n_trials < 2:
        raise ConfigError(
            f"hydra.sweeper.n_trials={n_trials}: a population has at least two trials"
        )
    found = ranges(space)
    for key, distribution in space.items():
        if not is_below(key, task.changeable_keys):
            raise ConfigError(
                f"{key}: cannot change in mid-training, as hydra/sweeper/scheduler=pbt has it; "
                f"what can: {', '.join(task.changeable_keys)}"
            )
        if key not in found:
            raise ConfigError(
                f"{key}: hydra/sweeper/scheduler=pbt moves a number within a range; give "
                f"interval(low, high) instead of {distribution}"
            )
