"""When a trial stops before its last epoch, and which epoch's weights it keeps."""

import math
from dataclasses import dataclass, field

from fmnist_sweep.engine.settings import EarlyStoppingConfig
from fmnist_sweep.results.record import Epoch


@dataclass
class EarlyStopping:
    """Follows one trial's metric.

    An epoch is better when the metric has moved by more than `min_change` since the best so far;
    after `patience` epochs in a row that were not better, the trial is `exhausted`.
    """

    config: EarlyStoppingConfig
    best: Epoch | None = field(default=None, init=False)
    exhausted: bool = field(default=False, init=False)

    def take(self, row: Epoch) -> bool:
        """Takes the next epoch; says whether it is the best so far."""
        assert self.config.patience is not None
        if self.best is None or self._gain(row, self.best) > self.config.min_change:
            self.best = row
            return True
        self.exhausted = row.epoch - self.best.epoch >= self.config.patience
        return False

    def _gain(self, row: Epoch, best: Epoch) -> float:
        name = self.config.metric
        up = getattr(row, name) - getattr(best, name)
        gain = float(up if name.endswith("accuracy") else -up)
        return -math.inf if math.isnan(gain) else gain
