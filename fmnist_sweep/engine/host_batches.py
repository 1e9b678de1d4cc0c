"""Batches of examples that are too many for the device's memory and stay on the host."""

import torch

from fmnist_sweep.engine.data import Examples


class HostBatches:
    """Gathers the examples of each step on the host and copies them to the device.

    The device's tensors stay the same from step to step, so that a CUDA graph can read them. The
    copies start from pinned memory: the host does not wait for them.

    Args:
        examples: the examples, on the host.
        size: the maximum number of examples in a step, those of all rows together.
        device: the device of the training.
    """

    def __init__(self, examples: Examples, size: int, device: torch.device) -> None:
        self.examples = examples
        shape, dtype = examples.inputs.shape[1:], examples.inputs.dtype
        self.inputs = torch.empty(size, *shape, dtype=dtype, device=device)
        self.labels = torch.empty(size, dtype=torch.int64, device=device)

    def tensors(self, batches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what the steps read in place of all examples.

        Args:
            batches: the numbers of the steps' examples, int64 [steps, K, batch].

        Returns:
            Inputs [K * batch, *shape] and labels [K * batch] on the device, and the numbers of each
            step's examples in these: int64 [steps, K, batch].
        """
        size = batches[0].numel()
        numbers = torch.arange(size, device=self.inputs.device).view(batches.shape[1:])
        return self.inputs[:size], self.labels[:size], numbers.expand(batches.shape).contiguous()

    def load(self, batch: torch.Tensor) -> None:
        """Copy a step's examples to the device.

        Args:
            batch: their numbers, int64 [K, batch] on the host.
        """
        numbers = batch.flatten()
        for source, target in (
            (self.examples.inputs, self.inputs),
            (self.examples.labels, self.labels),
        ):
            # New memory for each step: PyTorch uses it again only when the copy has ended.
            staged = torch.empty(
                (len(numbers), *source.shape[1:]),
                dtype=source.dtype,
                pin_memory=target.device.type == "cuda",
            )
            torch.index_select(source, 0, numbers, out=staged)
            target[: len(numbers)].copy_(staged, non_blocking=True)
