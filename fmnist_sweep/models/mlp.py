"""The baseline's multilayer perceptron."""

import math
from collections.abc import Sequence

import torch
from torch import nn


class MLP(nn.Sequential):
    """Hidden layers with ReLU between the inputs and the logits.

    For Fashion-MNIST width=128 and depth=2 mean 784-128-64-10: 109,386 parameters.

    Args:
        width: units of the first hidden layer, at least 2 ** (depth - 1).
        depth: number of hidden layers; each has half the units of the layer before.
        hidden: sizes of the hidden layers, instead of `width` and `depth`.
        dropout: probability in [0, 1) that a hidden unit is dropped in training.
        batch_norm: normalise each hidden layer over the batch before its ReLU (Ioffe & Szegedy,
            2015).
        inputs: the shape of an example.
        classes: number of logits.

    Raises:
        ValueError: `width` is too small for `depth` halvings.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        hidden: Sequence[int] | None,
        dropout: float,
        batch_norm: bool = False,
        *,
        inputs: Sequence[int],
        classes: int,
    ) -> None:
        sizes = list(hidden) if hidden else [width // 2**layer for layer in range(depth)]
        if min(sizes) < 1:
            raise ValueError(
                f"model.width={width}: must be at least {2 ** (depth - 1)} for "
                f"model.depth={depth}, each layer having half the units of the one before"
            )
        layers: list[nn.Module] = [nn.Flatten()]
        for before, outputs in zip([math.prod(inputs), *sizes], sizes):
            layers.append(nn.Linear(before, outputs, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(outputs))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(sizes[-1], classes))

    def forward(self, examples: torch.Tensor) -> torch.Tensor:
        """Map float32 examples [batch, *inputs] to logits [batch, classes]."""
        for layer in self:
            examples = layer(examples)
        return examples
