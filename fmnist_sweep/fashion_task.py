"""What a sweep may ask of this package's own training: see `fmnist_sweep.sweep.Task`."""

from omegaconf import DictConfig

from fmnist_sweep import record
from fmnist_sweep.cli import parsed
from fmnist_sweep.config import CHANGES_NO_RESULT, Config
from fmnist_sweep.schema_errors import known_keys
from fmnist_sweep.sweep.task import Task


class FashionTask(Task):
    """Training on Fashion-MNIST, whose configuration has a schema."""

    seed_key = "seed"
    objectives = record.METRICS
    step_metrics = record.EPOCH_METRICS
    default_objective = "val_accuracy"
    known_keys = tuple(known_keys(Config))
    free_keys = CHANGES_NO_RESULT
    preload = "fmnist_sweep.trial"

    def check(self, config: DictConfig) -> None:
        """Checks types, ranges, targets and their arguments."""
        from fmnist_sweep import build

        build.check(parsed(config))

    def check_keys(self, config: DictConfig) -> None:
        """Checks types and ranges."""
        parsed(config)

    def direction(self, metric: str) -> str:
        """Losses, seconds and parameters are better when lower."""
        return record.direction(metric)
