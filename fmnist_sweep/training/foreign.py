"""Optimizers without a stacked counterpart: PyTorch's own classes on the weights of one trial."""

from typing import Any

import torch
from torch import nn

from fmnist_sweep.training.recipe import Recipe, decay_scale, lr_scale


class Foreign:
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
