"""Update rules of PyTorch's optimizers for all trials of a chunk at once.

Every trial has its own hyperparameters. A rule has two halves. `coefficients` turns a trial's
hyperparameters and learning rates into a few coefficients per step, in float64 and outside the
training step. `update` is elementwise arithmetic on the parameters of all trials. The coefficients
reach `update` as tensors: a change of their values requires no recompilation, and a trial's result
does not depend on the other trials.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from fmnist_sweep.engine.recipe import ParameterScales, Recipe, decay_scale, lr_scale


class StackedOptimizer(Protocol):
    """The update rule of one of PyTorch's optimizers for the K rows of a chunk.

    state_names: PyTorch's names for the tensors of the optimizer state. All have the shape of the
        parameters and start as zeros.
    """

    state_names: tuple[str, ...]

    def coefficients(self, steps: np.ndarray, lr: np.ndarray) -> np.ndarray:
        """Compute the coefficients of a trial's steps.

        Args:
            steps: the numbers of the steps, counted from 1: float64 [n].
            lr: the learning rate in each step: float64 [n].

        Returns:
            float64 [n, C]; the class says what its C columns are.
        """
        ...

    @staticmethod
    def update(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        state: Mapping[str, torch.Tensor],
        coefficients: torch.Tensor,
        scales: ParameterScales,
    ) -> None:
        """Change parameters and state in place by one step.

        Args:
            parameters: float32 [K, P].
            gradient: float32 [K, P].
            state: tensors [K, P] by name; names other than `state_names` are left alone.
            coefficients: the coefficients of this step in each row: float32 [C, K, 1].
            scales: factors on the learning rate and the weight decay of each parameter.
        """
        ...


class Adam:
    """`torch.optim.Adam` (Kingma & Ba, 2015, algorithm 1), with weight decay as an L2 penalty.

    The bias corrections are part of the step size and of epsilon, which saves a division per
    element: m̂ / (√v̂ + ε) = (√(1-β₂ᵗ) / (1-β₁ᵗ)) · m / (√v + ε √(1-β₂ᵗ)).

    The coefficients of step t are 1-β₁, 1-β₂, the step size lr·√(1-β₂ᵗ)/(1-β₁ᵗ), the corrected
    epsilon ε·√(1-β₂ᵗ) and the weight decay (in AdamW: times the learning rate).
    """

    state_names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.eps, self.weight_decay = eps, weight_decay
        self.beta1, self.beta2 = betas

    def coefficients(self, steps: np.ndarray, lr: np.ndarray) -> np.ndarray:
        correction2 = np.sqrt(1 - self.beta2**steps)
        ones = np.ones_like(lr)
        return np.stack(
            [
                (1 - self.beta1) * ones,
                (1 - self.beta2) * ones,
                lr * correction2 / (1 - self.beta1**steps),
                self.eps * correction2,
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
        state: Mapping[str, torch.Tensor],
        coefficients: torch.Tensor,
        scales: ParameterScales,
    ) -> None:
        gradient = gradient + coefficients[4] * scales.weight_decay * parameters
        Adam._step(parameters, gradient, state, coefficients, scales)

    @staticmethod
    def _step(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        state: Mapping[str, torch.Tensor],
        coefficients: torch.Tensor,
        scales: ParameterScales,
    ) -> None:
        exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
        one_minus_beta1, one_minus_beta2, step_size, eps = coefficients[:4]
        exp_avg.add_((gradient - exp_avg) * one_minus_beta1)
        exp_avg_sq.add_((gradient * gradient - exp_avg_sq) * one_minus_beta2)
        parameters.sub_(exp_avg * (step_size * scales.learning_rate) / (exp_avg_sq.sqrt() + eps))


class AdamW(Adam):
    """`torch.optim.AdamW`: Adam with decoupled weight decay (Loshchilov & Hutter, 2019)."""

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
        state: Mapping[str, torch.Tensor],
        coefficients: torch.Tensor,
        scales: ParameterScales,
    ) -> None:
        shrinkage = coefficients[4] * scales.learning_rate * scales.weight_decay
        parameters.sub_(shrinkage * parameters)
        Adam._step(parameters, gradient, state, coefficients, scales)


class NAdam(Adam):
    """`torch.optim.NAdam`: Adam with Nesterov's momentum (Dozat, 2016).

    The step size among Adam's coefficients becomes the step size along exp_avg; a sixth coefficient
    is the step size along the gradient.
    """

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
        coefficients = super().coefficients(steps, lr)
        steps_to_next = np.arange(1, steps[-1] + 2)
        momentum = self.beta1 * (1 - 0.5 * 0.96 ** (steps_to_next * self.momentum_decay))
        product = np.cumprod(momentum)
        now = steps.astype(int) - 1
        correction2 = np.sqrt(1 - self.beta2**steps)
        coefficients[:, 2] = lr * correction2 * momentum[now + 1] / (1 - product[now + 1])
        gradient_step_size = lr * correction2 * (1 - momentum[now]) / (1 - product[now])
        return np.concatenate([coefficients, gradient_step_size[:, np.newaxis]], axis=1)

    @staticmethod
    def update(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        state: Mapping[str, torch.Tensor],
        coefficients: torch.Tensor,
        scales: ParameterScales,
    ) -> None:
        exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
        one_minus_beta1, one_minus_beta2, step_size, eps, decay, gradient_step_size = coefficients
        gradient = gradient + decay * scales.weight_decay * parameters
        exp_avg.add_((gradient - exp_avg) * one_minus_beta1)
        exp_avg_sq.add_((gradient * gradient - exp_avg_sq) * one_minus_beta2)
        along_average = step_size * scales.learning_rate * exp_avg
        along_gradient = gradient_step_size * scales.learning_rate * gradient
        parameters.sub_((along_average + along_gradient) / (exp_avg_sq.sqrt() + eps))


class RMSprop:
    """`torch.optim.RMSprop`: gradients divided by their root mean square (Hinton, 2012).

    The coefficients are learning rate, 1-α, ε, momentum and weight decay.
    """

    state_names: tuple[str, ...] = ("square_avg", "momentum_buffer")

    def __init__(
        self,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        self.constants = (1 - alpha, eps, momentum, weight_decay)

    def coefficients(self, steps: np.ndarray, lr: np.ndarray) -> np.ndarray:
        return np.stack([lr, *(value * np.ones_like(lr) for value in self.constants)], axis=1)

    @staticmethod
    def update(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        state: Mapping[str, torch.Tensor],
        coefficients: torch.Tensor,
        scales: ParameterScales,
    ) -> None:
        square_avg, momentum_buffer = state["square_avg"], state["momentum_buffer"]
        lr, one_minus_alpha, eps, momentum, decay = coefficients
        gradient = gradient + decay * scales.weight_decay * parameters
        square_avg.add_((gradient * gradient - square_avg) * one_minus_alpha)
        momentum_buffer.mul_(momentum).add_(gradient / (square_avg.sqrt() + eps))
        parameters.sub_(lr * scales.learning_rate * momentum_buffer)


class SGD:
    """`torch.optim.SGD`: gradient descent with momentum, optionally Nesterov's.

    The step goes along a·gradient + b·momentum_buffer, where (a, b) is (0, 1) for momentum and
    (1, μ) for Nesterov's momentum. The coefficients are learning rate, momentum μ, weight decay,
    a and b.
    """

    state_names: tuple[str, ...] = ("momentum_buffer",)

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and not momentum:
            raise ValueError("optimizer.nesterov=True: needs optimizer.momentum > 0")
        self.momentum, self.weight_decay = momentum, weight_decay
        self.nesterov = nesterov

    def coefficients(self, steps: np.ndarray, lr: np.ndarray) -> np.ndarray:
        direction = (1.0, self.momentum) if self.nesterov else (0.0, 1.0)
        constants = (self.momentum, self.weight_decay, *direction)
        return np.stack([lr, *(value * np.ones_like(lr) for value in constants)], axis=1)

    @staticmethod
    def update(
        parameters: torch.Tensor,
        gradient: torch.Tensor,
        state: Mapping[str, torch.Tensor],
        coefficients: torch.Tensor,
        scales: ParameterScales,
    ) -> None:
        momentum_buffer = state["momentum_buffer"]
        lr, momentum, decay, along_gradient, along_momentum = coefficients
        gradient = gradient + decay * scales.weight_decay * parameters
        momentum_buffer.mul_(momentum).add_(gradient)
        direction = along_gradient * gradient + along_momentum * momentum_buffer
        parameters.sub_(lr * scales.learning_rate * direction)


_STACKED_OPTIMIZERS: dict[type[torch.optim.Optimizer], Callable[..., StackedOptimizer]] = {
    torch.optim.Adam: Adam,
    torch.optim.AdamW: AdamW,
    torch.optim.NAdam: NAdam,
    torch.optim.RMSprop: RMSprop,
    torch.optim.SGD: SGD,
}


def stacked_optimizer(
    cls: type[torch.optim.Optimizer], arguments: Mapping[str, Any]
) -> StackedOptimizer | None:
    """Return the stacked counterpart of an optimizer of `torch.optim`.

    Args:
        cls: the class of the optimizer.
        arguments: its keyword arguments.

    Returns:
        The counterpart, or None if the class has none or the counterpart does not support an
        argument, such as `amsgrad`. A trial without a counterpart trains alone, with a
        `TorchOptimizer`.
    """
    counterpart = _STACKED_OPTIMIZERS.get(cls)
    if counterpart is None:
        return None
    try:
        return counterpart(**arguments)
    except TypeError:
        return None


class TorchOptimizer:
    """Optimizers of `torch.optim` for the weights of one trial.

    Muon supports hidden layers only: AdamW optimizes all other parameters.

    Args:
        cls: the class of the optimizer.
        arguments: its keyword arguments, among them "lr".
        model: the trial's model.
        recipe: the trial's recipe.
        views: views of the trial's trainable weights by parameter name, updated in place.
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
        # The last matrix computes the logits and is no hidden layer.
        with_muon = set(matrices[:-1]) if cls is torch.optim.Muon else set()
        self.shapes = {n: shapes[n] if n in with_muon else view.shape for n, view in views.items()}
        self.parameters = {n: nn.Parameter(v.view(self.shapes[n])) for n, v in views.items()}
        decay = arguments.get("weight_decay")
        groups: list[dict[str, Any]] = []
        adamw_groups: list[dict[str, Any]] = []
        for name, parameter in self.parameters.items():
            group = {"params": [parameter], "scale": lr_scale(model, name)}
            if decay is not None:
                group["weight_decay"] = decay * decay_scale(recipe, views[name])
            with_adamw = cls is torch.optim.Muon and name not in with_muon
            (adamw_groups if with_adamw else groups).append(group)
        self.optimizers = [cls(groups, **arguments)] if groups else []
        if adamw_groups:
            self.optimizers.append(torch.optim.AdamW(adamw_groups, lr=self.lr))

    def step(self, gradients: dict[str, torch.Tensor], lr: float) -> None:
        """Take one step with gradients by parameter name and a learning rate."""
        for name, gradient in gradients.items():
            self.parameters[name].grad = gradient.view(self.shapes[name])
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            optimizer.step()


def _muon_shape(view: torch.Tensor) -> tuple[int, ...]:
    """Return the shape [out, in·h·w] of a kernel [out, in, h, w] as the matrix for Muon."""
    return (len(view), view[0].numel()) if view.ndim > 1 else tuple(view.shape)
