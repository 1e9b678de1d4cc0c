"""Shapes and sizes of the models."""

import pytest
import torch
from torch import nn

from fmnist_sweep.models.mlp import MLP


def widths(model: nn.Module) -> list[int]:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def test_baseline_is_the_published_network() -> None:
    model = MLP(width=128, depth=2, hidden=None, dropout=0.0)
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
    assert widths(MLP(**arguments, dropout=0.0)) == expected


def test_dropout_follows_every_hidden_layer() -> None:
    model = MLP(width=128, depth=2, hidden=None, dropout=0.25)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]
