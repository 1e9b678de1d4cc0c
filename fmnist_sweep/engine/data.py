"""Labelled examples on a device, and the order in which a trial sees them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scaling:
    """Maps stored values to a network's inputs: `values * factor + offset`.

    factor, offset: one number for each channel of an image, or a single number for all values.
    """

    factor: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Return float32 inputs for values [..., *shape] of any dtype."""
        inputs = values.float()
        if self == UNSCALED:
            return inputs
        if len(self.factor) == 1:
            return inputs.mul(self.factor[0]).add(self.offset[0])
        planes = zip(inputs.unbind(-3), self.factor, self.offset)
        return torch.stack([plane.mul(factor).add(offset) for plane, factor, offset in planes], -3)


UNSCALED = Scaling()
# uint8 to [-1, 1], as torchvision's ToTensor and Normalize((0.5,), (0.5,)) do.
BYTES_TO_UNIT = Scaling((1 / 127.5,), (-1.0,))


@dataclass(frozen=True)
class DataFormat:
    """The shape, the classes and the scaling of a data set's examples.

    shape: of an example: (channels, height, width) of an image, (features,) of a row of a table.
    classes: the number of classes; labels are 0 to classes - 1.
    scaling: of the stored examples.
    range: the smallest and the largest stored value: black and white of an image.
    """

    shape: tuple[int, ...]
    classes: int
    scaling: Scaling
    range: tuple[float, float] = (0.0, 255.0)

    @property
    def is_image(self) -> bool:
        """True if examples have a height and a width."""
        return len(self.shape) == 3

    def scaled(self, value: float) -> tuple[float, ...]:
        """Return a stored value as the network sees it, in each channel or in all alike."""
        return tuple(value * f + o for f, o in zip(self.scaling.factor, self.scaling.offset))


@dataclass(frozen=True)
class Examples:
    """Labelled examples, on the device of the training or on the host.

    inputs: uint8 or float32 [N, *shape]. Bytes take a quarter of float32's memory traffic; each
        batch is scaled anew.
    labels: int64 [N].
    rows: int64 [n], those of the N that belong to the part; None for all. Inputs that are mapped
        into memory from a file are not copied for each part.
    streamed: they stay on the host, from where each batch is copied to the device.
    file: the array that maps the file of the inputs; another process maps it again.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor | None = None
    streamed: bool = False
    file: np.memmap[Any, Any] | None = None

    def __reduce__(self) -> Any:
        file = self.file
        if file is None:
            inputs: Any = self.inputs
        else:
            inputs = partial(
                np.memmap, file.filename, file.dtype, "c", offset=file.offset, shape=file.shape
            )
        return _examples, (inputs, self.labels, self.rows, self.streamed)

    def __len__(self) -> int:
        return len(self.labels if self.rows is None else self.rows)

    @property
    def own_labels(self) -> torch.Tensor:
        """The labels of the part's examples, int64 [n]."""
        return self.labels if self.rows is None else self.labels[self.rows]

    def slice(self, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and labels of the part's examples from `start` to before `stop`."""
        chosen = slice(start, stop) if self.rows is None else self.rows[start:stop]
        return self.inputs[chosen], self.labels[chosen]


def _examples(
    inputs: torch.Tensor | Callable[[], "np.memmap[Any, Any]"],
    labels: torch.Tensor,
    rows: torch.Tensor | None,
    streamed: bool,
) -> Examples:
    if isinstance(inputs, torch.Tensor):
        return Examples(inputs, labels, rows, streamed)
    file = inputs()
    return Examples(torch.from_numpy(file), labels, rows, streamed, file)


@dataclass(frozen=True)
class DataSplits:
    """The examples of a trial.

    train: examples for training.
    validation: examples for model selection.
    test: examples for the final test; None unless the test set has been opened.
    format: the shape, the classes and the scaling of all of them.
    about: for records: name, shape, classes by name and fingerprint.
    device: the device of the training.
    """

    train: Examples
    validation: Examples
    test: Examples | None
    format: DataFormat
    about: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device = CPU


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Return n / (classes * n of the class), scikit-learn's `balanced`: float32 [classes].

    Args:
        labels: int64 [n].
        classes: the number of classes; one without examples has weight 1.
    """
    counts = torch.bincount(labels.cpu(), minlength=classes).double()
    present = int((counts > 0).sum())
    weights = torch.where(counts > 0, len(labels) / (present * counts), 1.0)
    return weights.float().to(labels.device)


def epoch_permutation(seed: int, epoch: int, size: int) -> torch.Tensor:
    """Return the order in which a trial sees its examples in an epoch.

    The order depends on the seed and the epoch's number alone, neither on other trials of the stack
    nor on an interruption.

    Returns:
        int64 [size], a permutation on the CPU.
    """
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    return torch.randperm(size, generator=generator)
