"""The settings of a sweep, `hydra.sweeper`; conf/hydra/sweeper holds their defaults."""

import warnings
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Annotated, Any, Literal

import numpy as np
import optuna
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from pydantic import BeforeValidator, Field

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.schema import Section, checked, trusted_packages
from fmnist_sweep.results.metrics import direction
from fmnist_sweep.sweep.freeze_thaw import FreezeThaw
from fmnist_sweep.sweep.pbt import Pbt
from fmnist_sweep.sweep.scheduler import Asha
from fmnist_sweep.sweep.task import Task, seed_of


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _positive_or_noise(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or value == "noise" or (is_number and value > 0):
        return float(value) if is_number else value
    raise ValueError("must be a number > 0, or noise")


class Stop(Section):
    """The keys of `hydra.sweeper.stop`."""

    patience: Annotated[int, Field(ge=1)] | None
    target: float | None
    regret: Annotated[float | Literal["noise"] | None, BeforeValidator(_positive_or_noise)]

    @property
    def is_set(self) -> bool:
        return (self.patience, self.target, self.regret) != (None, None, None)


class Settings(Section):
    """The keys of `hydra.sweeper`, documented in conf/hydra/sweeper/study.yaml."""

    objective: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(min_length=1), BeforeValidator(_listed)
    ]
    seed_key: str | None
    direction: Annotated[list[Literal["minimize", "maximize"]], BeforeValidator(_listed)]
    repeats: Annotated[int, Field(ge=1, le=1000)] | None
    n_trials: Annotated[int, Field(ge=1)] | None
    n_jobs: Annotated[int, Field(ge=1)] | None
    shares: Annotated[int, Field(ge=1)] | None
    max_failures: Annotated[int, Field(ge=1)] | None
    timeout: Annotated[float, Field(gt=0)] | None
    max_epochs: Annotated[int, Field(ge=1)] | None
    stop: Stop
    points: list[dict[str, Any]]
    warm_start: list[str]
    constraints: Annotated[
        dict[str, Annotated[float, Field(gt=0)]], BeforeValidator(lambda value: value or {})
    ]
    design: Literal["product", "one_at_a_time"]
    baseline: bool
    params: dict[str, Any]
    custom_search_space: str | None
    storage: str | None
    accept_changes: bool
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    scheduler: Asha | FreezeThaw | Pbt | None

    @property
    def prunes(self) -> bool:
        return not self.pruner["_target_"].endswith(".NopPruner")

    @property
    def prunes_several(self) -> bool:
        """True if there is a pruner, and several objectives."""
        return self.prunes and len(self.objective) > 1

    @property
    def prunes_by_percentile(self) -> bool:
        """True if the pruner compares a trial with others at the same step, and nothing else."""
        return self.pruner["_target_"].rpartition(".")[2] in ("MedianPruner", "PercentilePruner")

    @property
    def learns_from_any_study(self) -> bool:
        """True if the sampler can learn from another study's trials.

        Other samplers keep notes in the trials of their own study.
        """
        name = self.sampler["_target_"].rpartition(".")[2]
        return name in ("TPESampler", "GPSampler") and self.custom_search_space is None

    @property
    def suggests_independently(self) -> bool:
        """True if suggestions depend on nothing but the space."""
        return self.grid_sampler or bool(self.sampler["_target_"].endswith(".RandomSampler"))

    @property
    def grid_sampler(self) -> bool:
        return bool(self.sampler["_target_"].endswith(".GridSampler"))


def read(values: Mapping[str, Any], task: Task) -> Settings:
    """Check `hydra.sweeper` and fill in the task's defaults.

    Raises:
        ConfigError: one line with the key, its value and the allowed values.
    """
    given = {key: value for key, value in values.items() if key != "_target_"}
    if given.get("objective") is None:
        given["objective"] = task.default_objective
    if given.get("seed_key") is None:
        given["seed_key"] = task.seed_key
    if given.get("direction") is None:
        names = map(str, _listed(given["objective"]))
        given["direction"] = [task.direction(name) or direction(name) for name in names]
    given["params"] = given.get("params") or {}
    given["scheduler"] = _scheduler(given.get("scheduler"))
    settings = checked(Settings, given, "hydra.sweeper.")
    for name in settings.objective:
        if task.objectives is not None and name not in task.objectives:
            raise ConfigError(
                f"hydra.sweeper.objective={name}: must be of {', '.join(task.objectives)}"
            )
    if len(settings.direction) != len(settings.objective):
        raise ConfigError(
            f"hydra.sweeper.direction={settings.direction}: must be one for each of "
            f"hydra.sweeper.objective={settings.objective}"
        )
    if settings.prunes:
        _check_steps(settings, task, "hydra/sweeper/pruner")
        if settings.prunes_several and not settings.prunes_by_percentile:
            raise ConfigError(
                "hydra/sweeper/pruner: decides on one objective only; choose median, percentile or "
                "none, or hydra/sweeper/scheduler=asha"
            )
    if settings.scheduler:
        _check_steps(settings, task, "hydra/sweeper/scheduler")
        if settings.prunes:
            raise ConfigError(
                "hydra/sweeper/scheduler: decides who goes on, and so does hydra/sweeper/pruner; "
                "choose none for one of them"
            )
        if not isinstance(settings.scheduler, Asha) and len(settings.objective) > 1:
            raise ConfigError(
                f"hydra/sweeper/scheduler={settings.scheduler.kind}: decides on a single "
                "objective; choose asha"
            )
    if settings.stop.is_set and len(settings.objective) > 1:
        raise ConfigError(
            "hydra.sweeper.stop: its rules need a single objective; hydra.sweeper.timeout and "
            "max_epochs end a sweep of several"
        )
    make_pruner(settings.pruner)
    if isinstance(settings.scheduler, Pbt):  # a trial's values change: none remains the baseline
        settings = settings.model_copy(update={"baseline": False})
    return settings


_SCHEDULERS: dict[str, type[Asha | FreezeThaw | Pbt]] = {
    "asha": Asha,
    "freeze_thaw": FreezeThaw,
    "pbt": Pbt,
}


def _scheduler(values: Any) -> Asha | FreezeThaw | Pbt | None:
    """Return the scheduler that a configuration names; None for an empty one."""
    if not values:
        return None
    kind = values.get("kind") if isinstance(values, Mapping) else values
    if kind not in _SCHEDULERS:
        names = ", ".join(_SCHEDULERS)
        raise ConfigError(f"hydra.sweeper.scheduler.kind={kind}: must be one of {names}")
    return checked(_SCHEDULERS[kind], values, "hydra.sweeper.scheduler.")


def check_repeats(settings: Settings, task: Task, config: DictConfig) -> None:
    """Refuse `hydra.sweeper.repeats` if the configuration has no seed to vary.

    Raises:
        ConfigError: it has none, or the application has its own key for repeats.
    """
    if settings.repeats is None:
        return
    key = f"hydra.sweeper.repeats={settings.repeats}"
    if task.repeats_key:
        raise ConfigError(f"{key}: here the key is {task.repeats_key}={settings.repeats}")
    if seed_of(config, settings.seed_key) is None:
        raise ConfigError(
            f"{key}: needs the application's key of its seed, hydra.sweeper.seed_key; "
            f"{settings.seed_key} is no seed"
        )


def _check_steps(settings: Settings, task: Task, group: str) -> None:
    """Check that each step has the objectives that a pruner or scheduler decides on."""
    steps = task.step_metrics
    for name in settings.objective:
        if steps is not None and name not in steps:
            raise ConfigError(
                f"{group}: needs an objective that each epoch has ({', '.join(steps)}), not {name};"
                f" {group}=none stops no trial early"
            )


# Samplers that need no trust; they take a seed.
SAMPLERS = (
    "hydra_plugins.hydra_optuna_sweeper.*",
    "optuna.samplers.*",
    "fmnist_sweep.sweep.cma_es.*",
)


def make_pruner(values: Mapping[str, Any]) -> optuna.pruners.BasePruner:
    """Make the pruner that a configuration names.

    Raises:
        ConfigError: the pruner does not exist or refuses its arguments.
    """
    made = _make("hydra.sweeper.pruner", values, "optuna.pruners.*")
    assert isinstance(made, optuna.pruners.BasePruner)
    return made


def make_sampler(settings: Settings, seed: int, starts: int) -> optuna.samplers.BaseSampler:
    """Make the sampler that `hydra/sweeper/sampler` names.

    Args:
        seed: the seed of a sampler that is configured without one.
        starts: the number of times that the sweep was started before. Each start has its own random
            stream, as a repeated stream would suggest the same values again.

    Raises:
        ConfigError: the sampler does not exist or refuses its arguments.
    """
    values = dict(settings.sampler)
    if settings.grid_sampler:  # a grid's points are known from the start
        return optuna.samplers.RandomSampler(seed)
    # A sampler of the user's own may have no such argument.
    known = any(fnmatch(values["_target_"], pattern) for pattern in SAMPLERS)
    takes_seed = known or "seed" in values
    if takes_seed and values.get("seed") is None:
        values["seed"] = seed
    # A quasi-random sequence counts its points in the study and must not change.
    if takes_seed and starts and not values["_target_"].endswith(".QMCSampler"):
        values["seed"] = int(np.random.SeedSequence([values["seed"], starts]).generate_state(1)[0])
    if values["_target_"] == "optuna.samplers.CmaEsSampler":
        values["_target_"] = "fmnist_sweep.sweep.cma_es.CmaEsSampler"
    made = _make("hydra.sweeper.sampler", values, *SAMPLERS, *trusted_packages())
    if not isinstance(made, optuna.samplers.BaseSampler):
        raise ConfigError(
            f"hydra.sweeper.sampler._target_={values['_target_']}: makes "
            f"{type(made).__name__}, not a sampler of Optuna"
        )
    return made


def _make(key: str, values: Mapping[str, Any], *patterns: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return instantiate(dict(values), _execution_whitelist_=patterns)
    except (InstantiationException, ValueError, TypeError, ImportError) as error:
        cause = error.__cause__ or error
        text = " ".join((str(cause).strip() or type(cause).__name__).split())
        raise ConfigError(f"{key}._target_={values.get('_target_')}: {text}") from None
