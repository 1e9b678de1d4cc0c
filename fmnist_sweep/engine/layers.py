"""Layers that compute for a trial in a stack, bit for bit, what they compute for it alone."""

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


class RowwiseBatchNorm(nn.BatchNorm1d):
    """Stands in for `nn.BatchNorm1d` while a stack trains.

    Under vmap PyTorch's own takes a stack's trials for further channels, and the order in which
    it adds up then depends on how many there are. This is made of operations that keep to a
    trial. Its input is [batch, channels]; the rest is as in `nn.BatchNorm1d`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.weight.dtype)  # under autocast it comes in bfloat16
        assert self.running_mean is not None and self.running_var is not None
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean = x.mean(0)
            variance = (x - mean).square().mean(0)
            self._follow(mean.detach(), variance.detach() * (len(x) / (len(x) - 1)))
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias

    def _follow(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
        self.running_var.mul_(1 - self.momentum).add_(self.momentum * variance)
        self.num_batches_tracked.add_(1)


def with_stackable_layers(model: nn.Module) -> list[str]:
    """Replaces dropout and batch norm of the model in place; returns the names of dropout's keys.

    Weights, buffers and a saved state dict keep their names.
    """
    plain = [name for name, module in model.named_modules() if type(module) is nn.Dropout]
    for layer, name in enumerate(plain):
        dropout = model.get_submodule(name)
        assert isinstance(dropout, nn.Dropout)
        model.set_submodule(name, KeyedDropout(dropout.p, layer))
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm1d and _is_usual(module):
            model.set_submodule(name, _rowwise(module))
    modules = model.named_modules()
    return [f"{name}.key" for name, module in modules if isinstance(module, KeyedDropout)]


def _is_usual(norm: nn.BatchNorm1d) -> bool:
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def _rowwise(norm: nn.BatchNorm1d) -> RowwiseBatchNorm:
    made = RowwiseBatchNorm(norm.num_features, norm.eps, norm.momentum)
    made.__dict__.update(norm.__dict__)  # the very tensors, hooks and mode
    return made
