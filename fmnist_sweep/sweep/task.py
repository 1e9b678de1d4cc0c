"""The seam between a sweep and the application that it sweeps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

Function = TypeVar("Function", bound=Callable[..., Any])


class Task:
    """What a sweep may ask of an application. A plain Hydra application has this one.

    An application that knows more about itself derives from it and says so:

        @hydra.main(...)
        @sweeps(MyTask())
        def main(config): ...

    seed_key: the key of the random seed, in which repeats and confirmations differ, if the
        configuration has it. `hydra.sweeper.seed_key` replaces it.
    repeats_key: the key of how many seeds a trial is run on, where the application has one itself.
    objectives: what a sweep can optimise; None for whatever is reported or returned.
    step_metrics: the objectives that every step reports, so that a pruner can decide on them; None
        for all.
    default_objective: what is optimised where `hydra.sweeper.objective` is null.
    known_keys: keys that exist in some configuration, to be proposed for a misspelt one.
    free_keys: keys that change no result: a sweep goes on although they have changed.
    preload: a module that is imported before trials are run in processes of their own.
    """

    seed_key: str = "seed"
    repeats_key: str | None = None
    objectives: Sequence[str] | None = None
    step_metrics: Sequence[str] | None = None
    default_objective: str = "value"
    known_keys: Iterable[str] = ()
    free_keys: Sequence[str] = ()
    preload: str = "fmnist_sweep.sweep.job"

    def check(self, config: DictConfig) -> None:
        """Checks a configuration before any trial runs.

        Raises:
            ConfigError: no trial can have it; a line for each wrong key.
        """

    def check_keys(self, config: DictConfig) -> None:
        """Checks keys and types of a configuration that lacks what the sweep fills in.

        Raises:
            ConfigError: a line for each wrong key.
        """

    def direction(self, metric: str) -> str | None:
        """Return `minimize` or `maximize`; None to leave it to the metric's name."""
        return None

    def runner(
        self, config: DictConfig, context: HydraContext, function: TaskFunction, cores: int
    ) -> Any:
        """Return a `runners.Runner` that runs many trials at once in one process.

        None for an application whose trials run one by one, each in a process of its own.
        """
        return None


def sweeps(task: Task) -> Callable[[Function], Function]:
    """Has the function that Hydra runs say what a sweep may ask of it."""

    def mark(function: Function) -> Function:
        function.sweep_task = task  # type: ignore[attr-defined]
        return function

    return mark


def task_of(function: Callable[..., Any]) -> Task:
    """What a sweep may ask of Hydra's task function."""
    found = getattr(function, "sweep_task", None)
    return found if isinstance(found, Task) else Task()


def seed_of(config: DictConfig, key: str | None) -> int | None:
    """Return the seed that a configuration has below a key; None where it has none there."""
    found = OmegaConf.select(config, key, throw_on_missing=False) if key else None
    is_seed = isinstance(found, int) and not isinstance(found, bool) and found >= 0
    return found if is_seed else None


class Listener(Protocol):
    """A sweep, as the trial sees it that runs in it."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes a step's metrics.

        Raises:
            optuna.TrialPruned: the trial is to end.
        """


listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(step: int, values: Mapping[str, float] | None = None, /, **metrics: float) -> None:
    """Reports a step's metrics to the sweep; does nothing outside of one.

    Each metric becomes a curve and a column of the sweep's tables. The one that is optimised also
    reaches the pruner.

    Args:
        step: the epoch or step, 0 or more; a step reported again replaces its values.
        values: metrics by name, for names such as `val/accuracy` that are no Python identifiers.
        metrics: the same as keywords; numbers, or tensors and arrays of one number.

    Raises:
        optuna.TrialPruned: the sweep's pruner ends this trial; let it pass.
        TypeError, ValueError: the step or a metric is no number.
    """
    there = listener.get()
    if there is not None:
        there.report(int(step), {k: float(v) for k, v in {**(values or {}), **metrics}.items()})
