"""Dropout whose masks are a trial's own: a function of its seed, its step and the unit alone."""

import torch
from torch import nn

_BITS32 = 0xFFFFFFFF


class KeyedDropout(nn.Module):
    """Stands in for `nn.Dropout` while a stack trains.

    `nn.Dropout` draws from one stream for the whole process, so that a trial's masks would
    depend on its neighbours. Here a unit is dropped when a hash of (key, layer, position) falls
    below the rate; the engine sets the key anew in each step. Both live in buffers, so that the
    trials of a stack can differ in them.

    rate: float32 scalar in [0, 1). key: int64 scalar in [0, 2**32).
    """

    rate: torch.Tensor
    key: torch.Tensor

    def __init__(self, rate: float, layer: int) -> None:
        super().__init__()
        self.layer = layer
        # Not persistent: a saved state dict is that of the model with plain dropout.
        self.register_buffer("rate", torch.tensor(rate), persistent=False)
        self.register_buffer("key", torch.tensor(0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        position = torch.arange(x.numel(), device=x.device).view(x.shape)
        bits = _hash(_hash(position + self.layer * 0x1000193) ^ self.key)
        # 24 bits are what a float32 in [0, 1) can hold evenly.
        uniform = (bits >> 8).float() * 2.0**-24
        return torch.where(uniform < self.rate, 0.0, x / (1 - self.rate))


def _hash(x: torch.Tensor) -> torch.Tensor:
    """Mixes 32-bit integers held in int64 as lowbias32 does (Wellons, hash-prospector).

    The second constant lacks its top bit, so that products fit int64.
    """
    x = x & _BITS32
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _BITS32
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _BITS32
    return x ^ (x >> 15)


def with_keyed_dropout(model: nn.Module) -> list[str]:
    """Replaces every `nn.Dropout` of the model in place; returns the names of all their keys."""
    plain = [name for name, module in model.named_modules() if type(module) is nn.Dropout]
    for layer, name in enumerate(plain):
        dropout = model.get_submodule(name)
        assert isinstance(dropout, nn.Dropout)
        model.set_submodule(name, KeyedDropout(dropout.p, layer))
    modules = model.named_modules()
    return [f"{name}.key" for name, module in modules if isinstance(module, KeyedDropout)]
