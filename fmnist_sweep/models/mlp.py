"""The baseline's multilayer perceptron."""

from collections.abc import Sequence

import torch
from torch import nn


class MLP(nn.Sequential):
    """Hidden layers with ReLU between 784 inputs and 10 logits.

    width=128 and depth=2 mean 784-128-64-10: 109,386 parameters.

    Args:
        width: units of the first hidden layer, at least 2 ** (depth - 1).
        depth: number of hidden layers; each has half the units of the layer before.
        hidden: sizes of the hidden layers, instead of `width` and `depth`.
        dropout: probability in [0, 1) that a hidden unit is dropped in training.
        batch_norm: normalise each hidden layer over the batch before its ReLU (Ioffe & Szegedy,
            2015).

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
    ) -> None:
        sizes = list(hidden) if hidden else [width // 2**layer for layer in range(depth)]
        if min(sizes) < 1:
            raise ValueError(
                f"model.width={width}: must be at least {2 ** (depth - 1)} for "
                f"model.depth={depth}, each layer having half the units of the one before"
            )
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in zip([28 * 28, *sizes], sizes):
            layers.append(nn.Linear(inputs, outputs, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(outputs))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(sizes[-1], 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float32 images [batch, 1, 28, 28] in [-1, 1] to logits [batch, 10]."""
        for layer in self:
            images = layer(images)
        return images
