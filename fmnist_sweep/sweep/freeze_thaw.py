"""A scheduler that continues the trial whose extrapolated curve promises the most per second."""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import numpy as np
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field
from scipy.special import ndtr

from fmnist_sweep.base.schema import Section
from fmnist_sweep.sweep.extrapolation import Floats, continue_curves
from fmnist_sweep.sweep.scheduler import EPOCH_SECONDS, PAUSED, StudyState, is_paused

# Assumed seconds to begin and to resume a trial. They only matter where an epoch takes as little.
BEGIN_SECONDS, RESUME_SECONDS = 0.3, 0.15
# A trial is paused, and not resumed when no further trial begins, if it is not expected to improve
# the best value by this share of an epoch's noise.
WORTH_TRAINING = 0.1
# How many times its epochs a trial is continued to if the number of epochs is not known.
AHEAD = 3


class FreezeThaw(Section):
    """Freeze-thaw: train the most promising trial for some epochs, then decide again.

    What a trial promises is the expected improvement of the best value at a later epoch, divided by
    the seconds until then; the epoch with the largest quotient counts. The trial's curve is
    continued by a power law with an uncertainty. A new trial promises the mean of what the trials
    so far would promise if they began now.

    Source of the idea: Swersky et al. (2014), "Freeze-thaw Bayesian optimization". Here the curves
    are continued one by one, and the sampler does not hear of the predictions.

    Attributes:
        interval: the epochs after which another trial may take over.
        n_startup_trials: the trials that train so many epochs before one of them is chosen.
    """

    kind: Literal["freeze_thaw"]
    interval: Annotated[int, Field(ge=1)]
    n_startup_trials: Annotated[int, Field(ge=1)]

    @property
    def first_decision(self) -> int:
        """The smallest number of epochs after which each trial has been decided on."""
        return self.interval

    @property
    def prunes(self) -> bool:
        """False: without pauses there is nothing to choose from."""
        return False

    def decides_after(self, number: int, epochs: int) -> bool:
        """Return whether a trial is decided on after a number of epochs."""
        return epochs % self.interval == 0

    def lets_continue(self, study: StudyState, number: int, epochs: int, can_pause: bool) -> bool:
        """Decide on a trial after an interval; see `scheduler.Scheduler`."""
        if study.can_begin and len(study.trials) < self.n_startup_trials:
            return False
        if not study.has_curve(study.trials[number]):
            return False
        numbers = [number, *(trial.number for trial in self._paused(study))]
        found = self._outlook(study, numbers, running=number)
        if not found.is_worth_it[0]:
            return False
        others = [*found.promises[1:], *([found.of_new] if study.can_begin else [])]
        return bool(found.promises[0] >= max(others, default=0.0))

    def next_to_resume(self, study: StudyState) -> int | None:
        """Choose the paused trial that is resumed; see `scheduler.Scheduler`."""
        paused = self._paused(study)
        for trial in paused:  # paused by `hydra.sweeper.timeout`
            if not self.decides_after(trial.number, trial.user_attrs[PAUSED]):
                return trial.number
        few = study.can_begin and len(study.trials) < self.n_startup_trials
        if few or not paused:
            return None
        found = self._outlook(study, [trial.number for trial in paused])
        best = int(np.argmax(found.promises))
        if study.can_begin:
            return paused[best].number if found.promises[best] > found.of_new else None
        states = [trial.state for trial in study.trials if not is_paused(trial)]
        has_result = TrialState.COMPLETE in states or TrialState.RUNNING in states
        is_needed = found.is_worth_it.any() or not has_result
        return paused[best].number if is_needed else None

    def _paused(self, study: StudyState) -> list[FrozenTrial]:
        return [t for t in study.trials if is_paused(t) and study.has_curve(t)]

    def _outlook(
        self, study: StudyState, numbers: Sequence[int], running: int | None = None
    ) -> "Outlook":
        """Return what trials promise.

        Args:
            numbers: the trials to choose from, each with at least one epoch.
            running: the one among them that need not be resumed.
        """
        seen = [trial for trial in study.trials if study.has_curve(trial)]
        curves = [study.curve(trial) for trial in seen]
        limits = [study.limit(trial) or AHEAD * len(c) for trial, c in zip(seen, curves)]
        seconds = [float(trial.user_attrs.get(EPOCH_SECONDS) or np.nan) for trial in seen]
        usual = np.nanmedian(seconds) if np.isfinite(seconds).any() else 1.0
        rows = [[trial.number for trial in seen].index(number) for number in numbers]
        delays = [0.0 if number == running else RESUME_SECONDS for number in numbers]
        return outlook(
            curves, np.array(limits), np.nan_to_num(seconds, nan=usual), rows, np.array(delays)
        )


class Outlook(NamedTuple):
    """The expected improvements from which the next trial is chosen.

    promises: expected improvement of the best value per second [candidates].
    of_new: what a new trial promises per second.
    is_worth_it: whether the expected improvement is worth any training [candidates].
    """

    promises: Floats
    of_new: float
    is_worth_it: np.ndarray


def outlook(
    curves: Sequence[Floats],
    limits: np.ndarray,
    seconds: Floats,
    candidates: Sequence[int],
    delays: Floats,
) -> Outlook:
    """Compute the expected improvements of trials.

    Args:
        curves: the values after each epoch, higher is better; at least one epoch each.
        limits: the last epoch of each trial [curves].
        seconds: those of an epoch of each trial [curves].
        candidates: the curves to choose from.
        delays: seconds until each candidate trains [candidates].
    """
    known = np.array([len(curve) for curve in curves])
    limits = np.maximum(limits, known)
    until = int(limits.max())
    means, deviations, noise = continue_curves(curves, until)
    best = max(float(curve.max()) for curve in curves)
    epochs = np.arange(1, until + 1)
    gain = expected_improvement(means, deviations, best)[candidates]
    ahead = epochs - known[candidates][:, None]
    is_possible = (ahead > 0) & (epochs <= limits[candidates][:, None])
    gain = np.where(is_possible, gain, 0.0)
    cost = delays[:, None] + np.maximum(ahead, 1) * seconds[candidates][:, None]
    if_new = expected_improvement(means, np.maximum(deviations, noise), best).mean(0)
    of_new = if_new / (BEGIN_SECONDS + epochs * seconds.mean())
    is_worth_it = gain.max(1) > WORTH_TRAINING * noise
    return Outlook((gain / cost).max(1), float(of_new.max()), is_worth_it)


def expected_improvement(means: Floats, deviations: Floats, best: float) -> Floats:
    """Return the expected improvement of normal variables over the best value."""
    spread = np.maximum(deviations, 1e-12)
    z = (means - best) / spread
    gain: Floats = spread * (z * ndtr(z) + np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi))
    return gain
