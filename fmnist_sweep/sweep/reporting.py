"""What a trial tells its sweep while it runs: light to import, as any application does."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Protocol


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
