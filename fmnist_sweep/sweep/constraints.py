"""Limits on what is known of a trial before it runs, `hydra.sweeper.constraints`."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import TrialState

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.task import Task

KEY = "hydra.sweeper.constraints"
# Random points of which one should be allowed.
MAX_DRAWS = 1000
NOTHING_KNOWN = "this application tells nothing beforehand (fmnist_sweep.sweep.Task.known_figures)"


def check(settings: Settings, task: Task) -> None:
    """Refuse constraints on what is not known, or in a sweep that cannot observe them.

    Raises:
        ConfigError: one line with the reason.
    """
    known = f"known are {', '.join(task.figures)}" if task.figures else NOTHING_KNOWN
    for name in settings.constraints:
        if name not in task.figures:
            raise ConfigError(f"{KEY}.{name}: is not known before a trial runs; {known}")
    if not settings.constraints:
        return
    if settings.custom_search_space:
        raise ConfigError(f"{KEY}: cannot be combined with hydra.sweeper.custom_search_space")
    if not (settings.learns_from_any_study or settings.suggests_independently):
        sampler = str(settings.sampler["_target_"]).rpartition(".")[2]
        raise ConfigError(
            f"{KEY}: needs hydra/sweeper/sampler=tpe, gp, random or grid: {sampler} "
            "has no second suggestion"
        )


class Constraints:
    """The limits of a sweep; with none, each point is allowed. Can be pickled.

    Args:
        limits: the largest value of each figure, by name.
        space: the space of the sweep.
        config: the configuration without the swept values.
        context: composes configurations.
        task: knows the figures of a configuration.
    """

    def __init__(
        self,
        limits: Mapping[str, float],
        space: Space,
        config: DictConfig,
        context: HydraContext,
        task: Task,
    ) -> None:
        self.limits = limits
        self.space = space
        self.config = config
        self.context = context
        self.task = task
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def allow(self, point: Mapping[str, Any]) -> bool:
        """Return whether a point's figures are within the limits."""
        return self.violation(point) is None

    def violation(self, point: Mapping[str, Any]) -> str | None:
        """Return which limit a point exceeds, for messages; None if it exceeds none.

        A point that makes no valid configuration is allowed: its trial fails with the reason.
        """
        if not self.limits:
            return None
        try:
            figures = self.task.known_figures(self._config(point))
        except (ConfigError, HydraException, OmegaConfBaseException):
            return None
        for name, limit in self.limits.items():
            if figures[name] > limit:
                return f"{name} = {figures[name]:,.10g} exceeds {KEY}.{name}={limit:.10g}"
        return None

    def _config(self, point: Mapping[str, Any]) -> DictConfig:
        """Return a point's configuration; valid until the next call.

        Composing is slow, so points that differ in numbers only share a configuration.
        """
        numbers = {k: v for k, v in point.items() if isinstance(v, int | float)}
        shared = tuple(f"{key}={value}" for key, value in point.items() if key not in numbers)
        if shared not in self._composed:
            lines = self.space.overrides(point)
            self._composed[shared] = self.context.config_loader.load_sweep_config(
                self.config, lines
            )
        config = self._composed[shared]
        for key, value in numbers.items():
            OmegaConf.update(config, key, value, force_add=True)
        return config

    def restrict(self, space: Space) -> Space:
        """Return the space without those initial points that are not allowed.

        Print a line if there are such points.

        Raises:
            ConfigError: no point is allowed, or one of `hydra.sweeper.points` is not.
        """
        if not self.limits:
            return space
        violations = [self.violation(point) for point in space.initial_points]
        points = [p for p, violation in zip(space.initial_points, violations) if not violation]
        n_refused = len(space.initial_points) - len(points)
        if space.is_exhaustive:
            if not points:
                raise ConfigError(f"{KEY}: allows none of the {n_refused:,} points")
            if n_refused:
                total = len(space.initial_points)
                print(f"{KEY}: leaves out {n_refused:,} of {total:,} points", file=sys.stderr)
            n_trials = min(space.n_trials, len(points))
            return replace(space, initial_points=points, n_trials=n_trials)
        draws = random_study(seed=0)
        if not any(self.allow(draw(draws, space)) for _ in range(MAX_DRAWS)):
            raise ConfigError(f"{KEY}: allows none of {MAX_DRAWS:,} random points")
        for point, violation in zip(space.initial_points, violations):
            if violation and not space.is_default(point):
                raise ConfigError(f"hydra.sweeper.points: {violation}")
            if violation:
                print(f"The default configuration is not tried: {violation}", file=sys.stderr)
        return replace(space, initial_points=points)


def random_study(seed: int) -> optuna.Study:
    """Return a study in memory that suggests random points."""
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))


def draw(study: optuna.Study, space: Space) -> dict[str, Any]:
    """Return a study's suggestion; the study does not wait for its result."""
    suggested = study.ask(space.distributions)
    study.tell(suggested, state=TrialState.FAIL)
    return suggested.params
