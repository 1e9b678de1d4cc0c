"""CUDA graphs: all kernels of a training step in a single launch."""

import functools
import logging
import warnings
from collections.abc import Callable

import torch

from fmnist_sweep.base.errors import first_line

log = logging.getLogger(__name__)


def can_capture(work: Callable[[], None]) -> bool:
    """Run the work once and return whether it never synchronizes with the host.

    Work that synchronizes cannot be captured, and a failed capture leaves PyTorch's random number
    generator unusable: hence this check beforehand.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
    if waits:
        log.warning("Its steps are launched kernel by kernel: they wait for the device")
    return not waits


def capture_cuda_graph(
    work: Callable[[], None], device: torch.device
) -> torch.cuda.CUDAGraph | None:
    """Capture the work as a CUDA graph without running the work.

    Returns:
        A graph whose `replay` runs the work on the captured tensors, or None (and a warning in the
        log) if the capture failed.
    """
    graph = torch.cuda.CUDAGraph()
    # Restores the current stream, which a failed capture does not.
    current = torch.cuda.stream(torch.cuda.current_stream(device))
    try:
        with (
            torch.cuda.device(device),
            current,
            torch.cuda.graph(graph, stream=_capture_stream(device)),
        ):
            work()
    except RuntimeError as error:
        log.warning("Its steps are launched kernel by kernel: %s", first_line(error))
        return None
    return graph


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream of all captures: PyTorch keeps a workspace for every capture stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
