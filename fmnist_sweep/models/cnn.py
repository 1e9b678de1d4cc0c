"""A small convolutional network."""

from collections.abc import Sequence

import torch
from torch import nn

STAGES = 3  # of Fashion-MNIST at 28 x 28, 14 x 14 and 7 x 7


class CNN(nn.Sequential):
    """Three stages of 3 x 3 convolutions, global average pooling and a linear layer.

    Follows VGG (Simonyan & Zisserman, 2015), with global average pooling (Lin et al., 2014) instead
    of VGG's wide linear layers. For Fashion-MNIST width=32 and depth=2 mean 288,170 parameters and
    29 million multiplications per image.

    Args:
        width: channels of the first stage. Max pooling between two stages halves the image's sides,
            and the number of channels doubles.
        depth: convolutions per stage, each followed by batch norm and ReLU.
        batch_norm: use batch norm (Ioffe & Szegedy, 2015); without batch norm the convolutions have
            a bias.
        dropout: probability in [0, 1) that an input of the last layer is dropped in training.
        inputs: the shape of an image, (channels, height, width).
        classes: number of logits.

    Raises:
        ValueError: the inputs are no images, or their sides are too short to be halved twice.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        batch_norm: bool,
        dropout: float,
        *,
        inputs: Sequence[int],
        classes: int,
    ) -> None:
        check_image(inputs, smallest=2 ** (STAGES - 1))
        layers: list[nn.Module] = []
        planes = inputs[0]
        for stage in range(STAGES):
            if stage:
                layers.append(nn.MaxPool2d(2))
            channels = width * 2**stage
            for _ in range(depth):
                layers.append(nn.Conv2d(planes, channels, 3, padding=1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(channels))
                layers.append(nn.ReLU())
                planes = channels
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(planes, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float32 images [batch, *inputs] to logits [batch, classes]."""
        # The fastest memory format for convolutions; all layers preserve it.
        images = images.contiguous(memory_format=torch.channels_last)
        for layer in self:
            images = layer(images)
        return images


def check_image(inputs: Sequence[int], smallest: int = 1) -> None:
    """Refuse inputs that are no images or too small.

    Args:
        inputs: the shape of an example.
        smallest: the length that each side must have at least.

    Raises:
        ValueError: one line that says what is allowed.
    """
    if len(inputs) != 3:
        raise ValueError(f"takes images, and the data has examples of shape {list(inputs)}")
    if min(inputs[1:]) < smallest:
        raise ValueError(
            f"takes images of at least {smallest} x {smallest} pixels, and the data has "
            f"{inputs[1]} x {inputs[2]}"
        )
