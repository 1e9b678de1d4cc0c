"""Additions to plain gradient steps: schedule, smoothing, clipping, averaging, augmentation."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from fmnist_sweep.engine import augmentation
from fmnist_sweep.engine.settings import (
    AugmentConfig,
    ConstantConfig,
    EarlyStoppingConfig,
    SchedulerConfig,
)

CONSTANT = ConstantConfig(kind="constant")


@dataclass(frozen=True)
class Recipe:
    """A trial's additions to plain gradient steps; by default there are none.

    scheduler: learning rate schedule.
    label_smoothing: share of the target spread over all classes (Szegedy et al., 2016), in [0, 1).
    clip_norm: maximum norm of a trial's gradient (Pascanu et al., 2013); None for no limit.
    average: decay of an exponential moving average (EMA) of the weights, in (0, 1); None for no
        average. The trial is evaluated with the average and keeps it as its weights. The decay of
        step t is at most (1 + t) / (10 + t), so that the average begins as a plain mean.
    early_stopping: settings of early stopping; None for never.
    decay_all: apply weight decay to biases and norms too.
    augment: augmentation of the training images; None for no augmentation.
    class_balance: power of the inverse frequency of an example's class, its weight in the loss, in
        [0, 1]: with 0 all examples count alike, with 1 all classes do.
    """

    scheduler: SchedulerConfig = CONSTANT
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    average: float | None = None
    early_stopping: EarlyStoppingConfig | None = None
    decay_all: bool = True
    augment: AugmentConfig | None = None
    class_balance: float = 0.0

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the step in use; they are the same for all trials that share a step."""
        in_use = {
            "smoothing": self.label_smoothing > 0,
            "balance": self.class_balance > 0,
            "clip": self.clip_norm is not None,
            "average": self.average is not None,
        }
        return tuple(name for name, used in in_use.items() if used)

    @property
    def augmentation_parts(self) -> tuple[str, ...]:
        """The operations of the augmentation, likewise the same for all trials of a step."""
        return augmentation.parts(self.augment) if self.augment else ()

    def draws(self, seed: int, epoch: int, size: int, shape: Sequence[int]) -> np.ndarray:
        """Draw an epoch's augmentation, float32 [size, D]; see `augmentation.draws`."""
        if not self.augment or not self.augmentation_parts:
            return np.empty((size, 0), dtype=np.float32)
        return augmentation.draws(self.augment, seed, epoch, size, shape)

    def coefficients(self, steps: np.ndarray) -> np.ndarray:
        """Compute the coefficient of each part in each step.

        Args:
            steps: the numbers of the steps, counted from 1: float64 [n].

        Returns:
            float64 [n, parts]: the label smoothing, the power of the inverse frequency, the maximum
            norm of the gradient, and one minus the decay of the average, as far as `parts` lists
            them.
        """
        values = {
            "smoothing": np.full(len(steps), self.label_smoothing),
            "balance": np.full(len(steps), self.class_balance),
            "clip": np.full(len(steps), self.clip_norm or 0.0),
            "average": 1 - np.minimum(self.average or 0.0, (1 + steps) / (10 + steps)),
        }
        return np.array([values[part] for part in self.parts]).reshape(-1, len(steps)).T


@runtime_checkable
class PretrainedModel(Protocol):
    """A model with a pretrained body and a head; see `fmnist_sweep.models.pretrained`.

    body_lr: factor on the learning rate of all parameters but the head's.
    unfreeze_after: number of epochs after which `unfreeze` is called; None for never.
    """

    body_lr: float
    unfreeze_after: int | None

    def head_parameters(self) -> set[str]: ...

    def unfreeze(self) -> None: ...


class ParameterScales(NamedTuple):
    """Factors on the learning rate and the weight decay of each parameter.

    Each is float32 [P], or 1.0 if all factors are 1.
    """

    learning_rate: torch.Tensor | float
    weight_decay: torch.Tensor | float


def lr_scale(model: nn.Module, name: str) -> float:
    """Return the factor on the learning rate of the named parameter."""
    if not isinstance(model, PretrainedModel) or name in model.head_parameters():
        return 1.0
    return model.body_lr


def decay_scale(recipe: Recipe, parameter: torch.Tensor) -> float:
    """Return the factor on a parameter's weight decay; biases and norms have one dimension."""
    return 1.0 if recipe.decay_all or parameter.ndim > 1 else 0.0


def parameter_scales(model: nn.Module, recipe: Recipe, device: torch.device) -> ParameterScales:
    """Return the factors of a model's trainable parameters, in the order of a row of weights."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    sizes = [p.numel() for _, p in named]
    rate = (lr_scale(model, name) for name, _ in named)
    decay = (decay_scale(recipe, parameter) for _, parameter in named)
    return ParameterScales(_per_element(rate, sizes, device), _per_element(decay, sizes, device))


def _per_element(
    factors: Iterable[float], sizes: list[int], device: torch.device
) -> torch.Tensor | float:
    per_parameter = torch.tensor(list(factors))
    if bool((per_parameter == 1).all()):
        return 1.0
    return per_parameter.repeat_interleave(torch.tensor(sizes)).to(device)


def clip_gradients(gradient: torch.Tensor, max_norm: torch.Tensor) -> torch.Tensor:
    """Return the rows of the gradient [K, P] clipped to their norms [K], as `clip_grad_norm_`."""
    # The order of summation may depend on K. In float64 it does not show in the result.
    norm = gradient.double().square().sum(1).sqrt()
    return gradient * (max_norm / (norm + 1e-6)).clamp(max=1).float().unsqueeze(1)


def update_ema(ema: torch.Tensor, weights: torch.Tensor, share: torch.Tensor) -> None:
    """Move the averages [K, P] towards the weights [K, P] by a share [K], in place."""
    ema.add_((weights - ema) * share.unsqueeze(1))
