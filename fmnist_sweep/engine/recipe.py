"""What a trial's training does beside plain gradient steps, and which parameters it spares."""

from collections.abc import Iterable
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
    """As it stands here: nothing.

    scheduler: of the learning rate.
    label_smoothing: share of the target spread over all classes (Szegedy et al., 2016), in [0, 1).
    clip_norm: largest norm of a trial's gradient (Pascanu et al., 2013); None for no limit.
    average: decay of a moving average of the weights, which is then what is evaluated and kept,
        in (0, 1); None for none. It begins as a plain mean: the decay of step t is at most
        (1 + t) / (10 + t).
    early_stopping: None for never.
    decay_all: weight decay acts on biases and norms too.
    augment: of the training images; None for none.
    """

    scheduler: SchedulerConfig = CONSTANT
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    average: float | None = None
    early_stopping: EarlyStoppingConfig | None = None
    decay_all: bool = True
    augment: AugmentConfig | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a step that are there; trials that share a step agree in them."""
        there = {
            "smoothing": self.label_smoothing > 0,
            "clip": self.clip_norm is not None,
            "average": self.average is not None,
        }
        return tuple(name for name, on in there.items() if on)

    @property
    def changes(self) -> tuple[str, ...]:
        """What is done to the images of a batch, likewise."""
        return augmentation.parts(self.augment) if self.augment else ()

    def draws(self, seed: int, epoch: int, size: int) -> np.ndarray:
        """Draw an epoch's augmentation, float32 [size, draws]: see `augmentation.draws`."""
        if not self.augment or not self.changes:
            return np.empty((size, 0), dtype=np.float32)
        return augmentation.draws(self.augment, seed, epoch, size)

    def numbers(self, steps: np.ndarray) -> np.ndarray:
        """Float64 [n, parts]: each part's number in the steps numbered `steps` [n], from 1."""
        values = {
            "smoothing": np.full(len(steps), self.label_smoothing),
            "clip": np.full(len(steps), self.clip_norm or 0.0),
            "average": 1 - np.minimum(self.average or 0.0, (1 + steps) / (10 + steps)),
        }
        return np.array([values[part] for part in self.parts]).reshape(-1, len(steps)).T


@runtime_checkable
class Transferred(Protocol):
    """A model whose body was trained before: see `fmnist_sweep.models.pretrained`.

    body_lr: factor on the learning rate of everything but the head.
    unfreeze_after: epochs after which `unfreeze` is called; None for never.
    """

    body_lr: float
    unfreeze_after: int | None

    def head_parameters(self) -> set[str]: ...

    def unfreeze(self) -> None: ...


class Scales(NamedTuple):
    """Factors on learning rate and weight decay: float32 [P], or 1.0 where all are the same."""

    rate: torch.Tensor | float
    decay: torch.Tensor | float


def lr_scale(model: nn.Module, name: str) -> float:
    """The factor on the learning rate of one parameter."""
    if not isinstance(model, Transferred) or name in model.head_parameters():
        return 1.0
    return model.body_lr


def decay_scale(recipe: Recipe, parameter: torch.Tensor) -> float:
    """The factor on the weight decay of one parameter: biases and norms have one dimension."""
    return 1.0 if recipe.decay_all or parameter.ndim > 1 else 0.0


def scales(model: nn.Module, recipe: Recipe, device: torch.device) -> Scales:
    """The factors of a model's trainable parameters, in their order in a row of a stack."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    sizes = [p.numel() for _, p in named]
    rate = (lr_scale(model, name) for name, _ in named)
    decay = (decay_scale(recipe, parameter) for _, parameter in named)
    return Scales(_spread(rate, sizes, device), _spread(decay, sizes, device))


def _spread(
    factors: Iterable[float], sizes: list[int], device: torch.device
) -> torch.Tensor | float:
    each = torch.tensor(list(factors))
    if bool((each == 1).all()):
        return 1.0
    return each.repeat_interleave(torch.tensor(sizes)).to(device)


def clipped(gradient: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Each row of the gradients [K, P] shortened to its limit [K], as `clip_grad_norm_` does."""
    # In float64, where the order of the sum, which may depend on K, does not show.
    norm = gradient.double().square().sum(1).sqrt()
    return gradient * (limit / (norm + 1e-6)).clamp(max=1).float().unsqueeze(1)


def update_ema(average: torch.Tensor, weights: torch.Tensor, share: torch.Tensor) -> None:
    """Moves the averages [K, P] towards the weights by each row's share [K], in place."""
    average.add_((weights - average) * share.unsqueeze(1))
