"""Shapes and sizes of the models."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from fmnist_sweep.models.cnn import CNN
from tests.conftest import mlp


def widths(model: nn.Module) -> list[int]:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def test_baseline_is_the_published_network() -> None:
    model = mlp(width=128, depth=2, hidden=None, dropout=0.0)
    assert widths(model) == [784, 128, 64, 10]
    assert sum(p.numel() for p in model.parameters()) == 109_386
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"width": 256, "depth": 3, "hidden": None}, [784, 256, 128, 64, 10]),
        ({"width": 64, "depth": 1, "hidden": None}, [784, 64, 10]),
        ({"width": 7, "depth": 9, "hidden": [256, 128, 100]}, [784, 256, 128, 100, 10]),
    ],
)
def test_layers(arguments: dict, expected: list[int]) -> None:  # type: ignore[type-arg]
    assert widths(mlp(**arguments, dropout=0.0)) == expected


def test_dropout_follows_every_hidden_layer() -> None:
    model = mlp(width=128, depth=2, hidden=None, dropout=0.25)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]


def test_batch_norm_stands_between_each_hidden_layer_and_its_relu() -> None:
    kinds = [type(m) for m in mlp(width=128, depth=2, hidden=None, dropout=0.1, batch_norm=True)]
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    assert kinds == [nn.Flatten, *hidden, *hidden, nn.Linear]


@pytest.mark.parametrize(
    ("width", "depth", "batch_norm"), [(32, 2, True), (8, 1, False), (5, 3, True)]
)
def test_the_cnn_is_three_stages_of_convolutions(width: int, depth: int, batch_norm: bool) -> None:
    model = CNN(width, depth, batch_norm, dropout=0.2, inputs=(1, 28, 28), classes=10)
    channels = [m.out_channels for m in model if isinstance(m, nn.Conv2d)]
    assert channels == [width] * depth + [2 * width] * depth + [4 * width] * depth
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model) == 3 * depth * batch_norm
    sides: list[int] = []
    for layer in model:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, output: sides.append(output.shape[-1]))
    images = torch.randn(3, 1, 28, 28)
    assert model(images).shape == (3, 10)
    assert [after / before for before, after in pairwise(sides)].count(0.5) == 2
    assert sides[0] == 28 and sides[-1] == 7
    # The layout that it computes in changes no number.
    plain = images
    for layer in model.eval():
        plain = layer(plain)
    torch.testing.assert_close(model(images), plain)


def test_the_default_cnn_has_the_size_it_says() -> None:
    model = CNN(32, 2, True, 0.0, inputs=(1, 28, 28), classes=10)
    assert sum(p.numel() for p in model.parameters()) == 288_170
