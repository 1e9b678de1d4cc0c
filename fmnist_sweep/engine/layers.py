"""Layers whose result for a trial is bit for bit the same in a stack as alone."""

import torch
from torch import nn

_UINT32_MAX = 0xFFFFFFFF


class KeyedDropout(nn.Module):
    """A replacement for `nn.Dropout` with a counter-based random number generator.

    `nn.Dropout` draws from one random stream per process, so that a trial's masks would depend on
    the other trials of the stack. This layer drops a unit if a hash of (key, layer, position) is
    below the dropout rate. The engine sets a new key in every step. Rate and key are buffers, so
    that they can differ between the trials of a stack.

    Args:
        rate: dropout probability in [0, 1); the buffer `rate` is a float32 scalar.
        layer: number of the dropout layer in its model.

    The buffer `key` is an int64 scalar in [0, 2**32).
    """

    rate: torch.Tensor
    key: torch.Tensor

    def __init__(self, rate: float, layer: int) -> None:
        super().__init__()
        self.layer = layer
        # Not persistent: the state dict stays that of the model with `nn.Dropout`.
        self.register_buffer("rate", torch.tensor(rate), persistent=False)
        self.register_buffer("key", torch.tensor(0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        position = torch.arange(x.numel(), device=x.device).view(x.shape)
        bits = _hash32(_hash32(position + self.layer * 0x1000193) ^ self.key)
        # float32 has 24 significant bits: the 24 upper bits give evenly spaced values in [0, 1).
        uniform = (bits >> 8).float() * 2.0**-24
        return torch.where(uniform < self.rate, 0.0, x / (1 - self.rate))


def _hash32(x: torch.Tensor) -> torch.Tensor:
    """Hash 32-bit integers held in int64, as lowbias32 does (Wellons, hash-prospector).

    The second constant lacks its top bit, so that products fit into int64.
    """
    x = x & _UINT32_MAX
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _UINT32_MAX
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _UINT32_MAX
    return x ^ (x >> 15)


class RowwiseBatchNorm(nn.BatchNorm1d):
    """A replacement for `nn.BatchNorm1d` that computes each trial of a stack independently.

    Under vmap, PyTorch's own batch norm treats the trials of a stack as additional channels, and
    its order of summation depends on the number of channels. The operations used here do not mix
    trials. The input is [batch, channels]; everything else is as in `nn.BatchNorm1d`.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.weight.dtype)  # bfloat16 under autocast
        assert self.running_mean is not None and self.running_var is not None
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean = x.mean(0)
            variance = (x - mean).square().mean(0)
            unbiased_variance = variance.detach() * (len(x) / (len(x) - 1))
            self._update_running_statistics(mean.detach(), unbiased_variance)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias

    def _update_running_statistics(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.running_mean.mul_(1 - self.momentum).add_(self.momentum * mean)
        self.running_var.mul_(1 - self.momentum).add_(self.momentum * variance)
        self.num_batches_tracked.add_(1)


def with_stackable_layers(model: nn.Module) -> list[str]:
    """Replace a model's dropout and batch norm layers in place by stackable layers.

    Parameters, buffers and the saved state dict keep their names.

    Returns:
        The names of the dropout layers' keys among the model's buffers.
    """
    dropout_names = [name for name, module in model.named_modules() if type(module) is nn.Dropout]
    for layer, name in enumerate(dropout_names):
        dropout = model.get_submodule(name)
        assert isinstance(dropout, nn.Dropout)
        model.set_submodule(name, KeyedDropout(dropout.p, layer))
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm1d and _is_replaceable(module):
            model.set_submodule(name, _rowwise(module))
    modules = model.named_modules()
    return [f"{name}.key" for name, module in modules if isinstance(module, KeyedDropout)]


def _is_replaceable(norm: nn.BatchNorm1d) -> bool:
    return norm.affine and norm.track_running_stats and norm.momentum is not None


def _rowwise(norm: nn.BatchNorm1d) -> RowwiseBatchNorm:
    rowwise = RowwiseBatchNorm(norm.num_features, norm.eps, norm.momentum)
    rowwise.__dict__.update(norm.__dict__)  # shares tensors, hooks and mode
    return rowwise
