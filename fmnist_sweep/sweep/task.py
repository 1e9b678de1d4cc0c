"""The interface between a sweep and the application that it sweeps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from enum import Enum
from typing import Any, Protocol, TypeVar

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fmnist_sweep.results.record import Epoch

Function = TypeVar("Function", bound=Callable[..., Any])


FINGERPRINT = "fingerprint of the data"  # the dependency that a warm start compares


class Decision(Enum):
    """A sweep's decision about a trial after an epoch or step.

    A paused trial may continue later, with the numbers that it would have had without the pause. A
    pruned trial has ended.
    """

    CONTINUE = 1
    PAUSE = 2
    PRUNE = 3


class Task:
    """The properties of an application that a sweep uses; the defaults suit any Hydra app.

    An application that can tell more about itself derives from it and marks its function:

        @hydra.main(...)
        @sweeps(MyTask())
        def main(config): ...

    seed_key: the key of the random seed, in which repeats and confirmations differ, if the
        configuration has it. `hydra.sweeper.seed_key` replaces it.
    repeats_key: the application's own key for the number of seeds of a trial, if it has one.
    objectives: the metrics that can be optimised; None for any that is reported or returned.
    step_metrics: the objectives that every step reports, which a pruner can decide on; None for
        all.
    default_objective: the objective if `hydra.sweeper.objective` is null.
    known_keys: keys of all possible configurations, for hints on misspelt keys.
    free_keys: keys that change no result; a sweep can be resumed although they have changed.
    data_keys: keys that say which data is used; results on other data are no help to a sweep.
    preload: modules that the server of trial processes imports once, for all of them.
    can_pause: whether a trial continues from where it was paused if it is run again in its folder;
        otherwise a scheduler prunes where it would pause.
    epochs_key: the key of the number of epochs, if there is one.
    figures: names of the figures that `known_figures` returns.
    changeable_keys: keys, and sections of keys, whose values a trial can change in mid-training, so
        that the application's `runner` can train a population; see `pbt.Pbt`.
    """

    seed_key: str = "seed"
    repeats_key: str | None = None
    objectives: Sequence[str] | None = None
    step_metrics: Sequence[str] | None = None
    default_objective: str = "value"
    known_keys: Iterable[str] = ()
    free_keys: Sequence[str] = ()
    data_keys: Sequence[str] = ()
    preload: Sequence[str] = (
        "fmnist_sweep.sweep.job",
        # What Optuna imports when a process opens a database, in half a second.
        *("alembic.command", "alembic.config", "alembic.context", "alembic.script"),
        *("optuna.storages", "sqlalchemy.dialects.sqlite", "sqlalchemy.orm"),
    )

    can_pause: bool = False
    epochs_key: str | None = None
    figures: Sequence[str] = ()
    changeable_keys: Sequence[str] = ()

    def check(self, config: DictConfig) -> None:
        """Check a configuration before any trial runs.

        Raises:
            ConfigError: no trial can run with it; a line for each wrong key.
        """

    def check_keys(self, config: DictConfig) -> None:
        """Check keys and types of a configuration without the swept values.

        Raises:
            ConfigError: a line for each wrong key.
        """

    def dependencies(self, config: DictConfig) -> Mapping[str, str]:
        """Return what results depend on besides the configuration, by name.

        An example is a checksum of the data. A sweep is resumed only if it is the same as before.

        Args:
            config: a configuration of the sweep.
        """
        return {}

    def known_figures(self, config: DictConfig) -> Mapping[str, float]:
        """Return what is known of a trial before it runs, by name: `hydra.sweeper.constraints`.

        Args:
            config: the trial's configuration.

        Raises:
            ConfigError: the configuration is not valid.
        """
        return {}

    def check_changes(self, config: DictConfig, ranges: Mapping[str, tuple[float, float]]) -> None:
        """Check that a trial can change to all these values in mid-training.

        Args:
            config: a configuration of the sweep.
            ranges: the lowest and the highest value of each key.

        Raises:
            ConfigError: one line with what is in the way.
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
    """Mark the function that Hydra runs with its `Task`."""

    def mark(function: Function) -> Function:
        function.sweep_task = task  # type: ignore[attr-defined]
        return function

    return mark


def task_of(function: Callable[..., Any]) -> Task:
    """Return the `Task` of the function that Hydra runs."""
    found = getattr(function, "sweep_task", None)
    return found if isinstance(found, Task) else Task()


def seed_of(config: DictConfig, key: str | None) -> int | None:
    """Return the seed that a configuration has below a key; None where it has none there."""
    found = OmegaConf.select(config, key, throw_on_missing=False) if key else None
    is_seed = isinstance(found, int) and not isinstance(found, bool) and found >= 0
    return found if is_seed else None


class Listener(Protocol):
    """The receiver of a running trial's reports."""

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a step's metrics.

        Raises:
            optuna.TrialPruned: the pruner ends the trial.
        """

    def take_epoch(self, row: Epoch) -> Decision:
        """Take an epoch of training that writes its own history."""


def never_stop(_: Epoch) -> Decision:
    """Let a trial continue after each epoch: where no sweep listens, there is no pruner either."""
    return Decision.CONTINUE


listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(step: int, values: Mapping[str, float] | None = None, /, **metrics: float) -> None:
    """Report a step's metrics to the sweep; do nothing outside of a sweep.

    Each metric becomes a curve and a column of the sweep's tables. The pruner gets the objective.

    Args:
        step: the epoch or step, 0 to 2**31 - 1. A step that is reported again replaces its values.
        values: metrics by name, for names such as `val/accuracy` that are no Python identifiers.
        metrics: the same as keywords. A value is a number, or a tensor or array of one number.

    Raises:
        optuna.TrialPruned: the pruner ends this trial; do not catch it.
        TypeError, ValueError: the step or a metric is not a number.
    """
    there = listener.get()
    if there is not None:
        there.report(int(step), {k: float(v) for k, v in {**(values or {}), **metrics}.items()})


def on_epoch() -> Callable[[Epoch], Decision] | None:
    """Return the function that training with its own history calls after each epoch.

    None outside of a sweep.
    """
    there = listener.get()
    return there.take_epoch if there else None
