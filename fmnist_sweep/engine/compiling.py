"""Whether and how the training step goes through `torch.compile`."""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from fmnist_sweep.base.errors import first_line

log = logging.getLogger(__name__)

# Under torch.compile a step on a CPU saves about 15 ns a parameter, most of it temporaries of the
# optimizer's; a compile costs 5 to 15 s once and 1 to 4 s from its cache on disk. The product
# of steps and parameters from which that is repaid:
REPAYS = 4e8
# On a GPU a step costs launches more than work, and is recorded besides (see `recording`): 57
# microseconds compiled and 135 eager for one trial of the baseline, 436 and 1,477 for 256 in one
# step (H200). A compile of 5 s is repaid to a trial alone after 64,000 steps, to 256 after 5,000.
STEPS_REPAY_ON_GPU = 15_000


def worth_compiling(
    wish: bool | Literal["auto"], steps: int, parameters: int, device: torch.device
) -> tuple[bool, str]:
    """Decides between compiled and eager steps.

    Args:
        wish: `trainer.compile`.
        steps: how many steps will be run.
        parameters: of the model.

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
    too_few = steps < STEPS_REPAY_ON_GPU if device.type == "cuda" else steps * parameters < REPAYS
    if too_few:
        return False, f"eager steps ({steps:,} are too few to repay a compile)"
    return True, "compiled steps (the first takes a few seconds)"


def _cpp_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compiled(step: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Compiles a step of fixed shapes, or returns it as it is where that fails, with a line."""
    # Would warn of a missing CUDA runtime where only its tools are installed.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # What was compiled is kept by code object, of which a number of versions is allowed: a step of
    # another kind gets a code object of its own.
    step.__code__ = step.__code__.replace()
    # A wrapper in C++ rather than Python takes a tenth off the baseline's step on a CPU.
    options: dict[str, Any] | None = {"cpp_wrapper": True} if device.type == "cpu" else None
    fast = torch.compile(step, fullgraph=True, dynamic=False, options=options)
    failed = False

    def call(*arguments: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return fast(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:
                # Nothing has run yet: a compile fails before the first kernel starts.
                reason = first_line(error)
                log.warning("torch.compile failed, going on with eager steps: %s", reason)
                failed = True
        return step(*arguments)

    return call


def skip_guards() -> AbstractContextManager[Any]:
    """Within it compiled steps do not check whether shapes or types changed since the last one.

    A stack's cannot change, and checking costs 50 of the baseline's 370 microseconds a step.
    Enter it only after a first step outside of it has compiled.
    """
    stance: AbstractContextManager[Any] = torch.compiler.set_stance(skip_guard_eval_unsafe=True)
    return stance
