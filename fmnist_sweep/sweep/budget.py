"""Budgets and stopping rules: why a sweep begins no further trials, though some are left."""

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.terminator import RegretBoundEvaluator
from optuna.trial import TrialState

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.results.tables import Run
from fmnist_sweep.sweep.settings import Settings

if TYPE_CHECKING:
    from fmnist_sweep.sweep.study import SweepStudy

REGRET_TRIALS = 20  # complete trials from which the regret can be estimated
USED_SECONDS = "used_seconds"  # the study's attribute: seconds of the sweep's commands so far


class Budget:
    """The limits of a sweep besides its number of trials, `hydra.sweeper.timeout` and others.

    Args:
        settings: the sweep's settings.
        study: the study, which keeps the time that earlier starts have used.
        started: when the command started, as `time.time()` returns it.
        used_before: seconds that earlier starts have used; None to read them from the study, which
            by and by has those of this start too.

    Raises:
        ConfigError: no time is left for a trial.
    """

    def __init__(
        self,
        settings: Settings,
        study: "SweepStudy",
        started: float,
        used_before: float | None = None,
    ) -> None:
        self.settings = settings
        self.study = study.study
        self.started = started
        if used_before is None:
            used_before = float(self.study.user_attrs.get(USED_SECONDS, 0.0))
        self.used_before = used_before
        self._regret_of = 0, float("inf")  # the number of trials it was computed from, and itself
        timeout = settings.timeout
        if timeout is not None and self.used_seconds() >= timeout:
            raise ConfigError(
                f"hydra.sweeper.timeout={timeout:g}: of these seconds, {self.used_before:.0f} were "
                f"used by earlier starts of the sweep and {time.time() - started:.0f} by this one, "
                "before its first trial"
            )

    @property
    def deadline(self) -> float | None:
        """When running trials end with their next step, as `time.time()` returns it."""
        timeout = self.settings.timeout
        return None if timeout is None else self.started + timeout - self.used_before

    def used_seconds(self) -> float:
        """Return the seconds that this command and earlier ones have worked on the sweep."""
        return self.used_before + time.time() - self.started

    def save(self) -> None:
        """Write the used time into the study, from which a later start goes on counting."""
        if self.settings.timeout is not None:
            self.study.set_user_attr(USED_SECONDS, self.used_seconds())

    def reason_to_stop(self, runs: Sequence[Run]) -> str | None:
        """Return why no further trial should begin; None if one should.

        Args:
            runs: the runs that have ended, in the order of their end.
        """
        settings, stop = self.settings, self.settings.stop
        if settings.timeout is not None and self.used_seconds() >= settings.timeout:
            return f"hydra.sweeper.timeout={settings.timeout:g}: the time is used"
        if settings.max_epochs is not None:
            epochs = sum(len(run.history) * (run.summary.get("repeats") or 1) for run in runs)
            if epochs >= settings.max_epochs:
                return f"hydra.sweeper.max_epochs={settings.max_epochs}: {epochs:,} were trained"
        best = _best(runs) if stop.is_set else None
        if best is None:
            return None
        name, value = best.objective[0], float(best.values[0])
        sign = 1 if best.direction[0] == "maximize" else -1
        if stop.target is not None and sign * value >= sign * stop.target:
            return f"hydra.sweeper.stop.target={stop.target:g}: {name} reached {value:.4f}"
        without = [
            run for run in runs[runs.index(best) + 1 :] if run.state in ("COMPLETE", "PRUNED")
        ]
        if stop.patience is not None and len(without) >= stop.patience:
            return (
                f"hydra.sweeper.stop.patience={stop.patience}: {len(without)} trials were no "
                f"better than trial {best.trial} with {name} {value:.4f}"
            )
        return self._small_regret(runs) if stop.regret is not None else None

    def _small_regret(self, runs: Sequence[Run]) -> str | None:
        """Return a reason if the estimated gain of further trials is below the limit."""
        limit = self.settings.stop.regret
        key = f"hydra.sweeper.stop.regret={limit}"
        if limit == "noise":
            errors = [
                run.summary[f"{run.objective[0]}_std"] / run.summary["repeats"] ** 0.5
                for run in runs
                if run.state == "COMPLETE"
                and run.summary.get(f"{run.objective[0]}_std") is not None
            ]
            if not errors:
                return None
            limit = float(np.median(errors))
        assert isinstance(limit, float)
        complete = self.study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        known, regret = self._regret_of
        # Seldom, as it takes a second.
        if len(complete) >= max(REGRET_TRIALS, 1.1 * known):
            regret = _regret(complete, self.study.direction)
            self._regret_of = len(complete), regret
        if regret >= limit:
            return None
        return f"{key}: a better configuration would gain at most about {regret:.4f}"


def _best(runs: Sequence[Run]) -> Run | None:
    """Return the complete run with the best value; the first of several."""
    complete = [run for run in runs if run.state == "COMPLETE" and run.values[0] is not None]
    if not complete:
        return None
    sign = 1 if complete[0].direction[0] == "maximize" else -1
    return max(complete, key=lambda run: sign * float(run.values[0]))


def _regret(trials: list[optuna.trial.FrozenTrial], direction: StudyDirection) -> float:
    """Return Optuna's upper bound of the distance to the best possible value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = RegretBoundEvaluator(min_n_trials=REGRET_TRIALS, seed=0)
    return float(evaluator.evaluate(trials, direction))
