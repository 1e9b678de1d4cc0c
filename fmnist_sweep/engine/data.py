"""Images on a device, and the order in which a trial sees them."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Images:
    """Labelled images on one device.

    pixels: uint8 [n, 1, 28, 28], a quarter of float32's memory traffic; normalised per batch.
    labels: int64 [n] in 0..9.
    """

    pixels: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class DataSplits:
    """The images of a trial.

    train: images for training.
    validation: images for model selection.
    test: images for the final test; None unless the test set has been opened.
    """

    train: Images
    validation: Images
    test: Images | None


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Map uint8 pixels of any shape to float32 in [-1, 1], as Normalize((0.5,), (0.5,)) does."""
    return pixels.float().mul(1 / 127.5).sub(1)


def epoch_permutation(seed: int, epoch: int, size: int) -> torch.Tensor:
    """Return the order in which a trial sees its images in an epoch.

    The order depends on the seed and the epoch's number alone, neither on other trials of the stack
    nor on an interruption.

    Returns:
        int64 [size], a permutation on the CPU.
    """
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(state >> np.uint64(1)))
    return torch.randperm(size, generator=generator)
