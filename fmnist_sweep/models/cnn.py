"""A small convolutional network."""

import torch
from torch import nn

STAGES = 3  # at 28 x 28, 14 x 14 and 7 x 7


class CNN(nn.Sequential):
    """Three stages of 3 x 3 convolutions, global average pooling and a linear layer.

    Follows VGG (Simonyan & Zisserman, 2015), with global average pooling (Lin et al., 2014) instead
    of VGG's wide linear layers. width=32 and depth=2 mean 288,170 parameters and 29 million
    multiplications per image.

    Args:
        width: channels of the first stage. Max pooling between two stages halves the image's sides,
            and the number of channels doubles.
        depth: convolutions per stage, each followed by batch norm and ReLU.
        batch_norm: use batch norm (Ioffe & Szegedy, 2015); without batch norm the convolutions have
            a bias.
        dropout: probability in [0, 1) that an input of the last layer is dropped in training.
    """

    def __init__(self, width: int, depth: int, batch_norm: bool, dropout: float) -> None:
        layers: list[nn.Module] = []
        inputs = 1
        for stage in range(STAGES):
            if stage:
                layers.append(nn.MaxPool2d(2))
            channels = width * 2**stage
            for _ in range(depth):
                layers.append(nn.Conv2d(inputs, channels, 3, padding=1, bias=not batch_norm))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(channels))
                layers.append(nn.ReLU())
                inputs = channels
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        super().__init__(*layers, nn.Linear(inputs, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map float32 images [batch, 1, 28, 28] in [-1, 1] to logits [batch, 10]."""
        # The fastest memory format for convolutions; all layers preserve it.
        images = images.contiguous(memory_format=torch.channels_last)
        for layer in self:
            images = layer(images)
        return images
