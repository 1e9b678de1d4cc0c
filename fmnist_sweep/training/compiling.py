"""Whether and how the training step goes through `torch.compile`."""

import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch

log = logging.getLogger(__name__)

# A step saves about 2 ms under torch.compile on a CPU, a compile costs 5 to 15 s once and 4 s
# from its cache on disk.
STEPS_THAT_REPAY = 4000


def worth_compiling(
    wish: bool | Literal["auto"], steps: int, device: torch.device
) -> tuple[bool, str]:
    """Decides between compiled and eager steps.

    Args:
        wish: `trainer.compile`.
        steps: how many steps will be run.

    Returns:
        The decision and the reason, for the log.
    """
    if wish is False:
        return False, "eager steps (trainer.compile=false)"
    if wish is True:
        return True, "compiled steps (trainer.compile=true)"
    if device.type == "cpu" and not _cpp_compiler():
        return False, "eager steps (no C++ compiler for torch.compile)"
    if device.type == "mps":
        return False, "eager steps (torch.compile is not used on mps)"
    if steps < STEPS_THAT_REPAY:
        return False, f"eager steps ({steps:,} are too few to repay a compile)"
    return True, "compiled steps (the first takes a few seconds)"


def _cpp_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compiled(step: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a step of fixed shapes, or returns it as it is where that fails, with a line."""
    # Would warn of a missing CUDA runtime where only its tools are installed.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    fast: Callable[..., Any] | None = torch.compile(step, fullgraph=True, dynamic=False)
    first = True

    def call(*arguments: Any) -> Any:
        nonlocal fast, first
        if fast is None:
            return step(*arguments)
        if first:
            first = False
            try:
                return fast(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:
                # Nothing has run yet: a compile fails before the first kernel starts.
                log.warning("torch.compile failed, going on with eager steps: %s", _brief(error))
                fast = None
                return step(*arguments)
        # The shapes of a stack are fixed, and checking so costs a third of a small step.
        with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
            return fast(*arguments)

    return call


def _brief(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
