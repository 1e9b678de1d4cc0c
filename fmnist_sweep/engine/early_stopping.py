"""Early stopping: when a trial ends early, and which epoch's weights it keeps."""

import math
from dataclasses import dataclass, field

from fmnist_sweep.engine.settings import EarlyStoppingConfig
from fmnist_sweep.results.metrics import direction
from fmnist_sweep.results.record import Epoch


@dataclass
class EarlyStopping:
    """Early stopping of one trial.

    An epoch is better if its metric improves on the best epoch's by more than `min_change`. The
    trial is `exhausted` after `patience` epochs in a row that were not better.
    """

    config: EarlyStoppingConfig
    best: Epoch | None = field(default=None, init=False)
    exhausted: bool = field(default=False, init=False)

    def take(self, row: Epoch) -> bool:
        """Take the next epoch into account and return whether it is the best so far."""
        assert self.config.patience is not None
        if self.best is None or self._improvement(row, self.best) > self.config.min_change:
            self.best = row
            return True
        self.exhausted = row.epoch - self.best.epoch >= self.config.patience
        return False

    def _improvement(self, row: Epoch, best: Epoch) -> float:
        name = self.config.metric
        increase = getattr(row, name) - getattr(best, name)
        improvement = float(increase if direction(name) == "maximize" else -increase)
        return -math.inf if math.isnan(improvement) else improvement
