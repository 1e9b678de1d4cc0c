"""A stack: trials that share a training step; each may join, leave and be at any epoch.

The rows of a stack are trained in chunks of 8, 4, 2 or 1 (on a GPU, of up to 256). A stack of any
size then needs at most four compiled steps and no padding, and the weights of a chunk stay in a
CPU's cache from step to step: in a chunk of 64 a trial takes as long as in a chunk of 8.
"""

import copy
import gc
import logging
import math
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import nn

from fmnist_sweep.base.errors import first_line
from fmnist_sweep.engine import checkpoint, optimizers
from fmnist_sweep.engine.checkpoint import State
from fmnist_sweep.engine.chunk import Chunk
from fmnist_sweep.engine.data import DataSplits
from fmnist_sweep.engine.functional_model import (
    Evaluation,
    buffers_and_frozen,
    choose_execution_mode,
)
from fmnist_sweep.engine.layers import with_stackable_layers
from fmnist_sweep.engine.recipe import PretrainedModel, decay_scale, lr_scale
from fmnist_sweep.engine.step import StepCache, Trial, TrialState
from fmnist_sweep.results.record import Epoch

log = logging.getLogger(__name__)

# Maximum number of rows in a chunk.
CHUNK_SIZE = {"cpu": 8, "mps": 8, "cuda": 256}
# Share of the free memory that a stack may take.
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Progress:
    """A trial's progress within an epoch.

    number: identifies the trial in its stack.
    epoch: the epoch, counted from 1.
    batch: number of batches trained so far in this epoch.
    loss, accuracy: means over these batches.
    """

    number: int
    epoch: int
    batch: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class StackKey:
    """Everything that trials must have in common to share a step.

    signature: the structure of model, optimizer and recipe.
    why_alone: the reason why such trials are trained one after the other, though with the same
        compiled step; None for trials that can be stacked.
    data: identity of the training examples.
    batch_size: number of examples in a batch.
    compile: run the step under `torch.compile`.
    bf16: see `FunctionalModel`.
    log_every: number of batches between two progress reports.
    threads: number of CPU threads.
    """

    signature: Hashable
    why_alone: str | None
    data: int
    batch_size: int
    compile: bool
    bf16: bool
    log_every: int
    threads: int


@dataclass(frozen=True)
class Outcome:
    """The outcome of an epoch of a trial.

    metrics: the metrics of the epoch.
    kept: the epoch whose weights the trial would keep if it ended now.
    exhausted: early stopping ends the trial after this epoch.
    """

    metrics: Epoch
    kept: Epoch
    exhausted: bool


_unique_signatures = count()


def stack_key(
    trial: Trial,
    data: DataSplits,
    batch_size: int,
    compile: bool,
    bf16: bool,
    log_every: int,
    threads: int,
) -> StackKey:
    """Return a trial's stack key; trials with equal keys can share a step.

    Replaces the layers of the trial's model by stackable layers, see `with_stackable_layers`. The
    other arguments are those of `StackKey`.
    """
    with_stackable_layers(trial.model)
    signature = _signature(trial) or next(_unique_signatures)
    why_alone = _why_alone(trial, data, bf16)
    inputs = id(data.train.inputs)
    return StackKey(signature, why_alone, inputs, batch_size, compile, bf16, log_every, threads)


def _why_alone(trial: Trial, data: DataSplits, bf16: bool) -> str | None:
    if optimizers.stacked_optimizer(trial.optimizer, trial.arguments) is None:
        return f"{trial.optimizer.__name__} with these arguments has no step for several trials"
    if isinstance(trial.model, PretrainedModel) and trial.model.unfreeze_after is not None:
        return "its network changes when it is unfrozen"
    device = data.device
    return choose_execution_mode(trial.model, data.format.shape, device, bf16)[1]


def have_equal_steps(one: Trial, other: Trial) -> bool:
    """Return whether two trials can share a step, and each can continue from the other's state."""
    for trial in (one, other):
        with_stackable_layers(trial.model)
    return _signature(one) is not None and _signature(one) == _signature(other)


def _signature(trial: Trial) -> Hashable:
    """Return a trial's structure, or None if it cannot be pickled.

    Trials with equal signatures differ in the values of tensors only.
    """
    model, recipe = trial.model, trial.recipe
    module_attributes = set(nn.Module().__dict__)
    structure = [
        (name, type(module), {k: v for k, v in vars(module).items() if k not in module_attributes})
        for name, module in model.named_modules()
    ]
    tensors = [
        (name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]
    scales = [
        (lr_scale(model, name), decay_scale(recipe, parameter))
        for name, parameter in model.named_parameters()
    ]
    try:
        return pickle.dumps(
            (trial.optimizer, structure, tensors, recipe.parts, recipe.augmentation_parts, scales)
        )
    except Exception:  # the user's objects may raise any exception
        return None


def max_stack_size(trial: Trial, batch_size: int, data: DataSplits) -> int:
    """Return how many trials like this one fit into half of the memory that is free now.

    A trial takes 4 bytes per parameter for each of weights, gradient, one temporary and the tensors
    of the optimizer state, and 8 bytes per activation of a batch, kept for the backward pass. The
    result is at least 1, and `sys.maxsize` if the operating system does not report its free memory.
    """
    stacked_optimizer = optimizers.stacked_optimizer(trial.optimizer, trial.arguments)
    parameters = sum(p.numel() for p in trial.model.parameters())
    copies = 3 + (len(stacked_optimizer.state_names) if stacked_optimizer else 2)
    copies += trial.recipe.average is not None
    activations = _activations(trial.model, data.format.shape)
    bytes_per_trial = 4 * parameters * copies + 8 * batch_size * activations
    device = data.device
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        # PyTorch reserves memory that it can use again.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:  # macOS and Windows
        return sys.maxsize
    return max(1, int(MEMORY_SHARE * free / bytes_per_trial))


@torch.no_grad()
def _activations(model: nn.Module, shape: Sequence[int]) -> int:
    """Return the number of values that a model's modules output for one example, and its own."""
    sizes: list[int] = []

    def record_size(_: nn.Module, __: Any, output: Any) -> None:
        sizes.append(output.numel() if isinstance(output, torch.Tensor) else 0)

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(record_size) for leaf in leaves]
    training = model.training
    try:
        model.eval()(torch.zeros(1, *shape))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return math.prod(shape) + sum(sizes)


class Stack:
    """The trials of one stack key that a worker trains together.

    Args:
        step_cache: the steps of the stack key.
        data: the trials' examples.
        batch_size: number of examples in a batch.
        log_every: number of batches between two progress reports.
        chunk_size: maximum number of rows in a chunk; a power of two.
    """

    def __init__(
        self,
        step_cache: StepCache,
        data: DataSplits,
        batch_size: int,
        log_every: int,
        chunk_size: int,
    ) -> None:
        self.step_cache = step_cache
        self.data = data
        self.batch_size = batch_size
        self.log_every = log_every
        self.chunk_size = chunk_size
        self.rows: dict[int, TrialState] = {}
        self._chunks: list[Chunk] | None = None

    def add(self, number: int, trial: Trial, state: State | None = None) -> None:
        """Add a trial, at its first epoch or at the state of the checkpoint to resume from.

        Args:
            number: identifies the trial in this stack.
            trial: the trial.
            state: the state that another stack has released, from which the trial continues.

        Raises:
            CheckpointError: training cannot resume from the checkpoint.
            OSError: the checkpoint cannot be read.
        """
        with_stackable_layers(trial.model)
        batches = -(-len(self.data.train) // self.batch_size)
        self.rows[number] = row = TrialState(number, trial, self.step_cache, batches)
        self._chunks = None
        if trial.checkpoint:
            # The weights and about two tensors of optimizer state for each.
            trial.checkpoint.begin(3 * sum(p.nbytes for p in trial.model.parameters()))
            if trial.checkpoint.resume and state is None:
                state = checkpoint.read(trial.checkpoint.resume, trial.checkpoint.configuration)
        if state is not None:
            self._restore(row, state)

    def release(self, number: int) -> State:
        """Remove a trial and return its state, with which another stack continues it."""
        state = self.rows.pop(number).state()
        self._chunks = None
        return state

    def state(self, number: int) -> State:
        """Return a trial's state, with which another trial can continue."""
        return self.rows[number].state()

    def pause(self, number: int) -> None:
        """Remove a trial and write its checkpoint, if it has one, to continue from it later.

        Raises:
            OSError: the checkpoint cannot be written.
        """
        row = self.rows.pop(number)
        self._chunks = None
        if row.trial.checkpoint is not None:
            row.trial.checkpoint.write(row.state())

    def _restore(self, row: TrialState, state: State) -> None:
        model = row.trial.model
        if isinstance(model, PretrainedModel) and model.unfreeze_after is not None:
            was_unfrozen = len(state["history"]) > model.unfreeze_after
            if was_unfrozen:
                self._unfreeze(row, model)
        row.restore(state)

    def remove(self, number: int) -> dict[str, torch.Tensor]:
        """Remove a trial.

        Returns:
            The trial's parameters and buffers by name, on the CPU, as `load` takes them: those of
            the best epoch under early stopping, else those of the last.
        """
        row = self.rows.pop(number)
        self._chunks = None
        tensors = row.best or row.tensors()
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def train_epoch(
        self, on_batches: Callable[[list[Progress]], None]
    ) -> dict[int, Outcome | Exception]:
        """Train and evaluate all trials for one epoch.

        Args:
            on_batches: called with the progress of a chunk's trials every `log_every` batches.

        Returns:
            For the number of each trial the outcome of the epoch, or the exception that stopped
            the trial. An epoch's seconds are the chunk's divided by the number of its trials.
        """
        self._unfreeze_due_trials()
        if self._chunks is None:
            self._chunks = self._make_fitting_chunks()
        outcomes: dict[int, Outcome | Exception] = {}
        for chunk in self._chunks:
            chunk.begin_epoch()
            self._finish_epoch(chunk, on_batches, outcomes, time.perf_counter())
        return outcomes

    def _unfreeze_due_trials(self) -> None:
        for row in self.rows.values():
            model = row.trial.model
            if isinstance(model, PretrainedModel) and model.unfreeze_after == row.epoch:
                self._unfreeze(row, model)
                self._chunks = None

    def _unfreeze(self, row: TrialState, model: PretrainedModel) -> None:
        """Train a trial's whole network from now on, with a new step and a new optimizer."""
        # A copy: the step cache of other trials with this stack key refers to the frozen model.
        unfrozen = copy.deepcopy(model)
        assert isinstance(unfrozen, nn.Module)
        load(unfrozen, row.tensors())
        unfrozen.unfreeze()
        row.trial = replace(row.trial, model=unfrozen)
        old = self.step_cache
        self.step_cache = StepCache(row.trial, old.data, old.compile, old.bf16, old.device)
        row.begin(self.step_cache)

    def _make_fitting_chunks(self) -> list[Chunk]:
        while True:
            try:
                return self._make_chunks()
            except torch.OutOfMemoryError as error:
                size, line = self.chunk_size, first_line(error)
                if size == 1:
                    raise
                log.warning("%d trials do not fit into memory, trying halves: %s", size, line)
                self.chunk_size //= 2
            free_cached_memory(self.step_cache.device)

    def _make_chunks(self) -> list[Chunk]:
        rows, chunks = list(self.rows.values()), []
        while rows:
            size = self.chunk_size
            while size > len(rows):
                size //= 2
            chunks.append(Chunk(rows[:size], self.step_cache, self.data.train, self.batch_size))
            del rows[:size]
        return chunks

    def _finish_epoch(
        self,
        chunk: Chunk,
        on_batches: Callable[[list[Progress]], None],
        outcomes: dict[int, Outcome | Exception],
        began: float,
    ) -> None:
        """Finish a chunk's epoch; after a failure continue with its halves, down to one trial."""
        try:
            trained, evaluated = self._train_chunk(chunk, on_batches)
        except Exception as error:
            failure = error
        else:
            seconds = (time.perf_counter() - began) / len(chunk.rows)
            for row, training, validation in zip(chunk.rows, trained, evaluated):
                metrics = Epoch(
                    row.epoch,
                    row.lr,
                    *training,
                    validation.loss,
                    validation.accuracy,
                    seconds,
                    validation.balanced_accuracy,
                    validation.macro_f1,
                )
                row.epoch_ended(metrics)
                outcomes[row.number] = Outcome(metrics, row.kept, row.is_exhausted)
                self._write_checkpoint(row)
            return
        # Outside of the `except` block, so that the exception refers to nothing any more: its
        # traceback's frames would keep their tensors, and the memory may be short.
        traceback.clear_frames(failure.__traceback__)
        failure.__traceback__ = failure.__context__ = None
        if len(chunk.rows) == 1:
            outcomes[chunk.rows[0].number] = failure
            return
        size = len(chunk.rows)
        log.warning("%d trials failed in one step, trying halves: %s", size, first_line(failure))
        self._chunks = None
        halves = chunk.halves()
        if isinstance(failure, torch.OutOfMemoryError):
            self.chunk_size = size // 2
            free_cached_memory(chunk.device)
        for half in halves:
            self._finish_epoch(half, on_batches, outcomes, began)

    def _train_chunk(
        self, chunk: Chunk, on_batches: Callable[[list[Progress]], None]
    ) -> tuple[list[tuple[float, float]], list[Evaluation]]:
        """Train a chunk to the end of its epoch; return its figures of training and validation."""
        while chunk.batch < chunk.batches:
            chunk.run(min(self.log_every, chunk.batches - chunk.batch))
            if chunk.batch % self.log_every == 0:
                on_batches(
                    [
                        Progress(row.number, row.epoch, chunk.batch, *means)
                        for row, means in zip(chunk.rows, chunk.running_means())
                    ]
                )
        return chunk.running_means(), chunk.evaluate(self.data.validation)

    def _write_checkpoint(self, row: TrialState) -> None:
        """Write a trial's checkpoint if it is due and the trial does not end with this epoch."""
        target = row.trial.checkpoint
        if target is None or not target.is_due or row.epoch == row.trial.epochs:
            return
        if row.is_exhausted:
            return
        try:
            target.write(row.state())
        except OSError as error:
            log.warning("%s: %s; the trial continues without it", target.path, error.strerror)


def free_cached_memory(device: torch.device) -> None:
    """Return memory that PyTorch keeps for later to the device, after it has run short."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def load(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Copy the tensors that `Stack.remove` returned into a model of the same structure."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *buffers_and_frozen(model).items()):
            tensor.copy_(tensors[name])
