"""The decision for or against `torch.compile`, and the compilation of a training step."""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

from fmnist_sweep.base.errors import first_line

log = logging.getLogger(__name__)

# On a CPU a compiled step saves about 15 ns per parameter, mostly the optimizer's temporaries. A
# compilation costs seconds, but only once (see `step_library`). The decision does not depend on
# whether a step is kept already: compiled and eager steps may differ in the last digits. Compile
# from this product of steps and parameters on:
MIN_STEPS_TIMES_PARAMETERS_ON_CPU = 4e8
# On a GPU kernel launches dominate a step, which is captured as a CUDA graph besides (see
# `cuda_graphs`). A compilation takes seconds, and saves microseconds of each step: on an H200, 78
# of 135 for one trial of the baseline, and 1,041 of 1,477 for 256 trials in one step.
COMPILE_SECONDS_ON_GPU = 5.0
SAVED_ON_GPU = 78e-6
SAVED_ON_GPU_BY_EACH_FURTHER_TRIAL = 3.8e-6


def worth_compiling(
    wish: bool | Literal["auto"],
    steps: int,
    parameters: int,
    device: torch.device,
    together: int = 1,
) -> tuple[bool, str]:
    """Decide between compiled and eager steps.

    Args:
        wish: `trainer.compile`.
        steps: number of steps in the run.
        parameters: number of the model's parameters.
        device: the device of the run.
        together: number of trials that will probably share the steps. On a CPU it does not matter:
            a trial has the same numbers in a stack as alone.

    Returns:
        Whether to compile, and the reason for the log.
    """
    if wish is False:
        return False, "eager steps (trainer.compile=false)"
    if wish is True:
        return True, "compiled steps (trainer.compile=true)"
    if device.type == "cpu" and not _has_cpp_compiler():
        return False, "eager steps (no C++ compiler for torch.compile)"
    if device.type == "mps":
        return False, "eager steps (torch.compile is not used on mps)"
    if device.type == "cuda":
        saved = SAVED_ON_GPU + SAVED_ON_GPU_BY_EACH_FURTHER_TRIAL * (together - 1)
        too_few = steps * saved < COMPILE_SECONDS_ON_GPU
    else:
        too_few = steps * parameters < MIN_STEPS_TIMES_PARAMETERS_ON_CPU
    if too_few:
        return False, f"eager steps ({steps:,} are too few to repay a compile)"
    return True, "compiled steps (the first takes a few seconds)"


def _has_cpp_compiler() -> bool:
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compiled(step: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Return a compiled version of a step whose tensors have fixed shapes.

    If the compilation fails, the returned function logs a warning and runs the eager step.
    """
    # Would warn about a missing CUDA runtime where only the CUDA tools are installed.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    # Dynamo limits the number of compiled versions per code object, and all steps come from one
    # function definition: every step gets its own code object.
    step.__code__ = step.__code__.replace()
    # On a CPU a C++ wrapper instead of a Python wrapper saves a tenth of the baseline's step.
    options: dict[str, Any] | None = {"cpp_wrapper": True} if device.type == "cpu" else None
    compiled_step = torch.compile(step, fullgraph=True, dynamic=False, options=options)
    failed = False

    def call(*arguments: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                return compiled_step(*arguments)
            except torch._dynamo.exc.TorchDynamoException as error:
                # A compilation fails before the first kernel runs: no tensor has changed.
                reason = first_line(error)
                log.warning("torch.compile failed, continuing with eager steps: %s", reason)
                failed = True
        return step(*arguments)

    return call


def skip_guards() -> AbstractContextManager[Any]:
    """Return a context in which compiled steps do not check shapes and types for changes.

    Shapes and types within a chunk are constant, and the check takes 50 of the baseline's 370
    microseconds per step. Enter the context only after a first step outside it has compiled.
    """
    stance: AbstractContextManager[Any] = torch.compiler.set_stance(skip_guard_eval_unsafe=True)
    return stance
