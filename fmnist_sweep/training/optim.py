"""Optimizer updates for a whole stack at once, each trial with hyperparameters of its own.

A rule has two halves. `coefficients` turns a trial's hyperparameters and its learning rate at
each step into a few numbers a step, in float64 and outside of the training step. `update` is
elementwise arithmetic on all trials' parameters; the numbers reach it as tensors, so that
nothing is compiled anew when they change and a trial's result does not depend on its neighbours.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch


class Rule(Protocol):
    """How a stack's parameters change in one step.

    moments: number of tensors of the parameters' shape that the rule keeps.
    """

    moments: int

    def coefficients(self, steps: np.ndarray, lr: np.ndarray) -> np.ndarray:
        """Float64 [n, numbers] for the n steps numbered `steps` (from 1) at rates `lr` [n]."""
        ...

    @staticmethod
    def update(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        moments: Sequence[torch.Tensor],
        numbers: torch.Tensor,
    ) -> None:
        """Changes parameters and moments [K, P] in place; numbers is [numbers, K, 1]."""
        ...


class Adam:
    """Adam (Kingma & Ba, 2015, algorithm 1) as `torch.optim.Adam`; L2 penalty in the gradient.

    The bias corrections are folded into step size and epsilon, which saves a division an
    element: m̂ / (√v̂ + ε) = (√(1-β₂ᵗ) / (1-β₁ᵗ)) · m / (√v + ε √(1-β₂ᵗ)).
    """

    moments = 2

    def __init__(
        self,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.beta1, self.beta2 = betas

    def coefficients(self, steps: np.ndarray, lr: np.ndarray) -> np.ndarray:
        root = np.sqrt(1 - self.beta2**steps)
        one = np.ones_like(lr)
        return np.stack(
            [
                (1 - self.beta1) * one,
                (1 - self.beta2) * one,
                lr * root / (1 - self.beta1**steps),
                self.eps * root,
                self._decay(lr),
            ],
            axis=1,
        )

    def _decay(self, lr: np.ndarray) -> np.ndarray:
        return self.weight_decay * np.ones_like(lr)

    @staticmethod
    def update(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        moments: Sequence[torch.Tensor],
        numbers: torch.Tensor,
    ) -> None:
        Adam._step(parameters, gradient + numbers[4] * parameters, moments, numbers)

    @staticmethod
    def _step(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        moments: Sequence[torch.Tensor],
        numbers: torch.Tensor,
    ) -> None:
        first, second = moments
        to_first, to_second, size, eps = numbers[:4]
        first.add_((gradient - first) * to_first)
        second.add_((gradient * gradient - second) * to_second)
        parameters.sub_(first * size / (second.sqrt() + eps))


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 2019) as `torch.optim.AdamW`."""

    def __init__(
        self,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)

    def _decay(self, lr: np.ndarray) -> np.ndarray:
        return lr * self.weight_decay

    @staticmethod
    def update(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        moments: Sequence[torch.Tensor],
        numbers: torch.Tensor,
    ) -> None:
        parameters.sub_(numbers[4] * parameters)
        Adam._step(parameters, gradient, moments, numbers)


class SGD:
    """Gradient descent with momentum and Nesterov's variant as `torch.optim.SGD`."""

    moments = 1

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and not momentum:
            raise ValueError("optimizer.nesterov=True: needs optimizer.momentum > 0")
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.nesterov = nesterov

    def coefficients(self, steps: np.ndarray, lr: np.ndarray) -> np.ndarray:
        one = np.ones_like(lr)
        # The step is along a·gradient + b·velocity: (0, 1) for momentum, (1, μ) for Nesterov.
        ahead = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        constants = (self.momentum, self.weight_decay, *ahead)
        return np.stack([lr, *(value * one for value in constants)], axis=1)

    @staticmethod
    def update(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        moments: Sequence[torch.Tensor],
        numbers: torch.Tensor,
    ) -> None:
        (velocity,) = moments
        lr, momentum, decay, of_gradient, of_velocity = numbers
        gradient = gradient + decay * parameters
        velocity.mul_(momentum).add_(gradient)
        parameters.sub_(lr * (of_gradient * gradient + of_velocity * velocity))


_RULES: dict[type[torch.optim.Optimizer], type[Adam] | type[SGD]] = {
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
    torch.optim.SGD: SGD,
}


def rule(cls: type[torch.optim.Optimizer], arguments: Mapping[str, Any]) -> Rule | None:
    """The stacked counterpart of an optimizer of `torch.optim` with these arguments.

    None where there is none: for another class, or an argument such as `amsgrad` that the
    counterpart does not know. Such a trial is stepped by the class itself, alone.
    """
    counterpart = _RULES.get(cls)
    if counterpart is None:
        return None
    try:
        return counterpart(**arguments)
    except TypeError:
        return None
