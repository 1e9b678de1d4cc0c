"""Optimizer updates for a whole stack at once, each trial with hyperparameters of its own.

A rule has two halves. `coefficients` turns a trial's hyperparameters and its learning rate at
each step into a few numbers a step, in float64 and outside of the training step. `update` is
elementwise arithmetic on all trials' parameters; the numbers reach it as tensors, so that
nothing is compiled anew when they change and a trial's result does not depend on its neighbours.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fmnist_sweep.engine.recipe import Recipe, Scales, decay_scale, lr_scale


class StackedOptimizer(Protocol):
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
        scales: Scales,
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
        scales: Scales,
    ) -> None:
        gradient = gradient + numbers[4] * scales.decay * parameters
        Adam._step(parameters, gradient, moments, numbers, scales)

    @staticmethod
    def _step(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        moments: Sequence[torch.Tensor],
        numbers: torch.Tensor,
        scales: Scales,
    ) -> None:
        first, second = moments
        to_first, to_second, size, eps = numbers[:4]
        first.add_((gradient - first) * to_first)
        second.add_((gradient * gradient - second) * to_second)
        parameters.sub_(first * (size * scales.rate) / (second.sqrt() + eps))


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
        scales: Scales,
    ) -> None:
        parameters.sub_(numbers[4] * scales.rate * scales.decay * parameters)
        Adam._step(parameters, gradient, moments, numbers, scales)


class NAdam(Adam):
    """Adam with Nesterov's momentum (Dozat, 2016) as `torch.optim.NAdam`."""

    def __init__(
        self,
        lr: float = 2e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)
        self.momentum_decay = momentum_decay

    def coefficients(self, steps: np.ndarray, lr: np.ndarray) -> np.ndarray:
        numbers = super().coefficients(steps, lr)
        until_next = np.arange(1, steps[-1] + 2)
        momentum = self.beta1 * (1 - 0.5 * 0.96 ** (until_next * self.momentum_decay))
        product = np.cumprod(momentum)
        now = steps.astype(int) - 1
        root = np.sqrt(1 - self.beta2**steps)
        numbers[:, 2] = lr * root * momentum[now + 1] / (1 - product[now + 1])
        along_gradient = lr * root * (1 - momentum[now]) / (1 - product[now])
        return np.concatenate([numbers, along_gradient[:, np.newaxis]], axis=1)

    @staticmethod
    def update(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        moments: Sequence[torch.Tensor],
        numbers: torch.Tensor,
        scales: Scales,
    ) -> None:
        first, second = moments
        to_first, to_second, size, eps, decay, size_along_gradient = numbers
        gradient = gradient + decay * scales.decay * parameters
        first.add_((gradient - first) * to_first)
        second.add_((gradient * gradient - second) * to_second)
        along = size * scales.rate * first + size_along_gradient * scales.rate * gradient
        parameters.sub_(along / (second.sqrt() + eps))


class RMSprop:
    """Gradients over their root mean square (Hinton, 2012) as `torch.optim.RMSprop`."""

    moments = 2

    def __init__(
        self,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        self.lr, self.constants = lr, (1 - alpha, eps, momentum, weight_decay)

    def coefficients(self, steps: np.ndarray, lr: np.ndarray) -> np.ndarray:
        return np.stack([lr, *(value * np.ones_like(lr) for value in self.constants)], axis=1)

    @staticmethod
    def update(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        moments: Sequence[torch.Tensor],
        numbers: torch.Tensor,
        scales: Scales,
    ) -> None:
        square, velocity = moments
        lr, to_square, eps, momentum, decay = numbers
        gradient = gradient + decay * scales.decay * parameters
        square.add_((gradient * gradient - square) * to_square)
        velocity.mul_(momentum).add_(gradient / (square.sqrt() + eps))
        parameters.sub_(lr * scales.rate * velocity)


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
        scales: Scales,
    ) -> None:
        (velocity,) = moments
        lr, momentum, decay, of_gradient, of_velocity = numbers
        gradient = gradient + decay * scales.decay * parameters
        velocity.mul_(momentum).add_(gradient)
        along = of_gradient * gradient + of_velocity * velocity
        parameters.sub_(lr * scales.rate * along)


_RULES: dict[type[torch.optim.Optimizer], Callable[..., StackedOptimizer]] = {
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
    torch.optim.NAdam: NAdam,
    torch.optim.RMSprop: RMSprop,
    torch.optim.SGD: SGD,
}


def rule(cls: type[torch.optim.Optimizer], arguments: Mapping[str, Any]) -> StackedOptimizer | None:
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


class TorchOptimizer:
    """Steps one trial's weights with optimizers of `torch.optim`.

    Args:
        cls: the class, with its arguments.
        model: whose trainable parameters they are.
        views: of the trial's weights, by parameter name.
    """

    def __init__(
        self,
        cls: type[torch.optim.Optimizer],
        arguments: dict[str, Any],
        model: nn.Module,
        recipe: Recipe,
        views: dict[str, torch.Tensor],
    ) -> None:
        self.lr = float(arguments["lr"])
        shapes = {name: _muon_shape(view) for name, view in views.items()}
        matrices = [name for name, shape in shapes.items() if len(shape) > 1]
        # Muon is for hidden layers: the last matrix makes the logits.
        by_muon = set(matrices[:-1]) if cls is torch.optim.Muon else set()
        self.shapes = {n: shapes[n] if n in by_muon else view.shape for n, view in views.items()}
        self.parameters = {n: nn.Parameter(v.view(self.shapes[n])) for n, v in views.items()}
        decay = arguments.get("weight_decay")
        own: list[dict[str, Any]] = []
        others: list[dict[str, Any]] = []
        for name, parameter in self.parameters.items():
            group = {"params": [parameter], "scale": lr_scale(model, name)}
            if decay is not None:
                group["weight_decay"] = decay * decay_scale(recipe, views[name])
            (others if cls is torch.optim.Muon and name not in by_muon else own).append(group)
        self.optimizers = [cls(own, **arguments)] if own else []
        if others:
            self.optimizers.append(torch.optim.AdamW(others, lr=self.lr))

    def step(self, gradients: dict[str, torch.Tensor], lr: float) -> None:
        """One step at a learning rate, along gradients by parameter name."""
        for name, gradient in gradients.items():
            self.parameters[name].grad = gradient.view(self.shapes[name])
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            optimizer.step()


def _muon_shape(view: torch.Tensor) -> tuple[int, ...]:
    """A kernel [out, in, h, w] as the matrix [out, in·h·w] that Muon wants."""
    return (len(view), view[0].numel()) if view.ndim > 1 else tuple(view.shape)
