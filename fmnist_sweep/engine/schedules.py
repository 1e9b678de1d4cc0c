"""Learning rate schedules: the factor on `optimizer.lr` in each step of a run."""

import math

import numpy as np
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from fmnist_sweep.engine.settings import (
    ConstantConfig,
    CosineConfig,
    OneCycleConfig,
    PiecewiseConfig,
    PlateauConfig,
    SchedulerConfig,
    StepConfig,
    WarmupCosineConfig,
)
from fmnist_sweep.results.metrics import direction
from fmnist_sweep.results.record import Epoch


class Schedule:
    """The learning rate schedule of one run.

    Args:
        config: the schedule's settings.
        epochs: number of epochs in the run.
        batches: number of steps in an epoch.
    """

    def __init__(self, config: SchedulerConfig, epochs: int, batches: int) -> None:
        self.config = config
        self.epochs = epochs
        self.batches = batches
        self._plateau = _plateau(config) if isinstance(config, PlateauConfig) else None

    def factors(self, epoch: int) -> np.ndarray:
        """Return the factor in each step of an epoch, float64 [batches]; epochs count from 1."""
        if self._plateau:
            return np.full(self.batches, self._plateau.optimizer.param_groups[0]["lr"])
        if getattr(self.config, "per", "epoch") == "epoch":
            return np.repeat(
                _factors(self.config, np.array([epoch - 1.0]), self.epochs, 1), self.batches
            )
        times = np.arange((epoch - 1) * self.batches, epoch * self.batches, dtype=float)
        return _factors(self.config, times, self.epochs * self.batches, self.batches)

    def epoch_ended(self, row: Epoch) -> None:
        """Pass a finished epoch's metrics to the schedule; only plateau schedules use them."""
        if self._plateau:
            assert isinstance(self.config, PlateauConfig)
            self._plateau.step(getattr(row, self.config.metric))


def _plateau(config: PlateauConfig) -> ReduceLROnPlateau:
    """Return PyTorch's scheduler on a dummy optimizer whose learning rate is the factor."""
    return ReduceLROnPlateau(
        torch.optim.SGD([torch.zeros(1)], lr=1.0),
        mode="max" if direction(config.metric) == "maximize" else "min",
        factor=config.factor,
        patience=config.patience,
        threshold=config.min_change,
        threshold_mode="abs",
        min_lr=config.final,
    )


def _factors(config: SchedulerConfig, t: np.ndarray, length: int, epoch: int) -> np.ndarray:
    """Return the factors at times t [n], in steps or epochs from 0.

    Args:
        config: the schedule's settings.
        t: times, in steps or epochs.
        length: duration of the run in the unit of t.
        epoch: duration of an epoch in the unit of t.
    """
    match config:
        case CosineConfig():  # SGDR without restarts (Loshchilov & Hutter, 2017)
            return _half_cosine(1, config.final, t / length)
        case WarmupCosineConfig():  # linear warmup (Goyal et al., 2017), then cosine
            warmup = config.warmup_epochs * epoch
            up = config.start + (1 - config.start) * t / max(warmup, 1)
            down = _half_cosine(1, config.final, (t - warmup) / (length - warmup))
            return np.where(t < warmup, up, down)
        case OneCycleConfig():  # Smith & Topin, 2018, as torch.optim.lr_scheduler.OneCycleLR
            top = max(config.warmup_share * length - 1, 0.0)
            up = _half_cosine(config.start, 1, t / max(top, 1))
            down = _half_cosine(1, config.final, (t - top) / max(length - 1 - top, 1))
            return np.where(t < top, up, down)
        case StepConfig():
            return config.factor ** np.floor(t / (config.every * epoch))
        case _:
            # A piecewise schedule changes `optimizer.lr` itself: see `Trial.changes`.
            assert isinstance(config, ConstantConfig | PiecewiseConfig)
            return np.ones_like(t)


def _half_cosine(start: float, end: float, share: np.ndarray) -> np.ndarray:
    """Return half a cosine wave from `start` at share 0 to `end` at share 1."""
    return end + (start - end) * (1 + np.cos(math.pi * share)) / 2
