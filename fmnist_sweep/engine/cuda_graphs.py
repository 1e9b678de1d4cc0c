"""Steps on a CUDA device, launched as one instead of kernel by kernel."""

import functools
import logging
import warnings
from collections.abc import Callable

import torch

from fmnist_sweep.base.errors import first_line

log = logging.getLogger(__name__)


def can_capture(work: Callable[[], None]) -> bool:
    """Does the work; whether it asks nothing of the host, so that it can be recorded.

    Found out beforehand, since a recording that fails leaves PyTorch's generator unusable.
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
    """The work for `replay`, on the very tensors that it is recorded with; it is not done yet.

    None where it cannot be recorded, with a line.
    """
    graph = torch.cuda.CUDAGraph()
    # Puts back the stream, which a recording that fails leaves in place.
    usual = torch.cuda.stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.device(device), usual, torch.cuda.graph(graph, stream=_apart(device)):
            work()
    except RuntimeError as error:
        log.warning("Its steps are launched kernel by kernel: %s", first_line(error))
        return None
    return graph


@functools.cache
def _apart(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: PyTorch keeps a workspace for each stream that it has recorded on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
