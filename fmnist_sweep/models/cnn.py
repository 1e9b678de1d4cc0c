"""A small convolutional network."""

import torch
from torch import nn

STAGES = 3  # at 28 x 28, 14 x 14 and 7 x 7


class CNN(nn.Sequential):
    """Three stages of 3 x 3 convolutions, a mean over what is left of the image, ten logits.

    After VGG (Simonyan & Zisserman, 2015), with the mean in place of its wide linear layers
    (Lin et al., 2014).

    Args:
        width: channels of the first stage; each further stage has twice as many and, after max
            pooling, images of half the side.
        depth: convolutions in each stage, each followed by batch norm and ReLU.
        batch_norm: whether it is there (Ioffe & Szegedy, 2015); convolutions have a bias if not.
        dropout: probability that one of the numbers before the last layer is dropped in training,
            in [0, 1).

    width=32 and depth=2 are 288,170 parameters and 29 million multiplications an image.
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
        """Float32 images [batch, 1, 28, 28] in [-1, 1] to logits [batch, 10]."""
        # The layout in which processors convolve fastest; layers keep it.
        images = images.contiguous(memory_format=torch.channels_last)
        for layer in self:
            images = layer(images)
        return images
