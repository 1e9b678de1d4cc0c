"""The seam between a sweep and the application that it sweeps."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

Function = TypeVar("Function", bound=Callable[..., Any])


class Task:
    """What a sweep may ask of an application. A plain Hydra application has this one.

    An application that knows more about itself derives from it and says so:

        @hydra.main(...)
        @sweeps(MyTask())
        def main(config): ...

    seed_key: the key of the random seed, which repeats and confirmations change; None where there
        is none. `hydra.sweeper.seed_key` goes before it.
    objectives: what a sweep can optimise; None for whatever is reported or returned.
    step_metrics: the objectives that every step reports, so that a pruner can decide on them; None
        for all.
    default_objective: what is optimised where `hydra.sweeper.objective` is null.
    known_keys: keys that exist in some configuration, to be proposed for a misspelt one.
    free_keys: keys that change no result: a sweep goes on although they have changed.
    preload: a module that is imported before trials are run in processes of their own.
    """

    seed_key: str | None = None
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
        """`minimize` or `maximize`; None where only the metric's name can say."""
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


def seed_of(config: DictConfig, key: str | None) -> int:
    """The seed that a configuration has below a key; 0 where it has none."""
    found = OmegaConf.select(config, key) if key else None
    return found if isinstance(found, int) and found >= 0 else 0
