"""A stack: trials that share a step, each at an epoch of its own, joining and leaving at any.

The rows of a stack are trained in chunks of 8, 4, 2 or 1 (of up to 256 on a GPU). A stack of any
size then needs four compiled steps at most, none of its rows is padding, and a chunk's weights stay
in a CPU's cache from step to step: one of 64 costs a trial what one of 8 does.
"""

import copy
import logging
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import nn

from fmnist_sweep.base.errors import first_line
from fmnist_sweep.engine import checkpoint, optimizers
from fmnist_sweep.engine.checkpoint import State
from fmnist_sweep.engine.data import DataSplits
from fmnist_sweep.engine.functional_model import untrained, way
from fmnist_sweep.engine.layers import with_stackable_layers
from fmnist_sweep.engine.recipe import Transferred, decay_scale, lr_scale
from fmnist_sweep.engine.step import Chunk, Steps, Trial, TrialState
from fmnist_sweep.results.record import Epoch

log = logging.getLogger(__name__)

CHUNK = {"cpu": 8, "mps": 8, "cuda": 256}
MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Progress:
    """Where a trial stands within an epoch: running means over the batches so far."""

    number: int
    epoch: int
    batch: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class StackKey:
    """What trials must have in common to share a step.

    signature: of all structure of model, optimizer and recipe.
    alone: why such trials are trained one after the other, though with the same compiled step;
        None for trials of a stack.
    threads: of the CPU that their step runs on.
    """

    signature: Hashable
    alone: str | None
    data: int
    batch_size: int
    compile: bool
    bf16: bool
    log_every: int
    threads: int


@dataclass(frozen=True)
class Outcome:
    """A finished epoch of a trial.

    kept: the epoch whose weights the trial would end with now: the best one under early stopping.
    exhausted: early stopping ends the trial here.
    """

    figures: Epoch
    kept: Epoch
    exhausted: bool


_unlike_any = count()


def kind(
    trial: Trial,
    data: DataSplits,
    batch_size: int,
    compile: bool,
    bf16: bool,
    log_every: int,
    threads: int,
) -> StackKey:
    """Says which trials a trial can share a step with; replaces its layers for that."""
    with_stackable_layers(trial.model)
    signature = _signature(trial) or next(_unlike_any)
    alone = _why_alone(trial, data.train.pixels.device, bf16)
    pixels = id(data.train.pixels)
    return StackKey(signature, alone, pixels, batch_size, compile, bf16, log_every, threads)


def _why_alone(trial: Trial, device: torch.device, bf16: bool) -> str | None:
    if optimizers.rule(trial.optimizer, trial.arguments) is None:
        return f"{trial.optimizer.__name__} with these arguments has no step for several trials"
    if isinstance(trial.model, Transferred) and trial.model.unfreeze_after is not None:
        return "its network changes when it is unfrozen"
    return way(trial.model, device, bf16)[1]


def _signature(trial: Trial) -> Hashable:
    """All of a trial's structure: what two must agree in to differ in tensors alone."""
    model, recipe = trial.model, trial.recipe
    common = set(nn.Module().__dict__)
    structure = [
        (name, type(module), {k: v for k, v in vars(module).items() if k not in common})
        for name, module in model.named_modules()
    ]
    tensors = [
        (name, tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    ]
    scaled = [
        (lr_scale(model, name), decay_scale(recipe, parameter))
        for name, parameter in model.named_parameters()
    ]
    try:
        return pickle.dumps(
            (trial.optimizer, structure, tensors, recipe.parts, recipe.changes, scaled)
        )
    except Exception:  # whatever the user's own objects raise
        return None


def most(trial: Trial, batch_size: int, device: torch.device) -> int:
    """How many such trials fit into half of the memory that is free now.

    A trial takes 4 bytes for each parameter, times its weights, gradient, the optimizer's
    moments and one temporary; and 8 for each activation of a batch, kept for the gradient.
    """
    rule = optimizers.rule(trial.optimizer, trial.arguments)
    parameters = sum(p.numel() for p in trial.model.parameters())
    copies = 3 + (rule.moments if rule else 2)
    bytes_each = 4 * parameters * copies + 8 * batch_size * _activations(trial.model)
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        # What PyTorch keeps for reuse.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    elif "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", ()):
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    else:  # macOS and Windows do not say
        return sys.maxsize
    return max(1, int(MEMORY_SHARE * free / bytes_each))


@torch.no_grad()
def _activations(model: nn.Module) -> int:
    """Numbers that the modules of a model put out for one image."""
    sizes: list[int] = []

    def note(_: nn.Module, __: Any, output: Any) -> None:
        sizes.append(output.numel() if isinstance(output, torch.Tensor) else 0)

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    training = model.training
    try:
        model.eval()(torch.zeros(1, 1, 28, 28))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return 28 * 28 + sum(sizes)


class Stack:
    """Trials of one kind in training.

    Args:
        steps: of their kind.
        chunk: the most rows of one step; a power of two.
    """

    def __init__(
        self, steps: Steps, data: DataSplits, batch_size: int, log_every: int, chunk: int
    ) -> None:
        self.steps = steps
        self.data = data
        self.batch_size = batch_size
        self.log_every = log_every
        self.chunk = chunk
        self.rows: dict[int, TrialState] = {}
        self._chunks: list[Chunk] | None = None

    def add(self, number: int, trial: Trial) -> None:
        """Takes a trial in, at its first epoch or where its checkpoint has it."""
        with_stackable_layers(trial.model)
        batches = -(-len(self.data.train) // self.batch_size)
        self.rows[number] = row = TrialState(number, trial, self.steps, batches)
        self._chunks = None
        if trial.checkpoint:
            # Weights and as many numbers twice for the optimizer.
            trial.checkpoint.begin(3 * sum(p.nbytes for p in trial.model.parameters()))
            if trial.checkpoint.resume:
                self._restore(row, checkpoint.read(trial.checkpoint.resume, trial.checkpoint.whose))

    def _restore(self, row: TrialState, state: State) -> None:
        model = row.trial.model
        if isinstance(model, Transferred) and model.unfreeze_after is not None:
            thawed = len(state["history"]) > model.unfreeze_after
            if thawed:
                self._thaw(row, model)
        row.restore(state)

    def remove(self, number: int) -> dict[str, torch.Tensor]:
        """Lets a trial go.

        Returns:
            The parameters and buffers that it keeps, by name, on the CPU; for `load`.
        """
        row = self.rows.pop(number)
        self._chunks = None
        tensors = row.best or row.tensors()
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def epoch(self, on_batches: Callable[[list[Progress]], None]) -> dict[int, Outcome | Exception]:
        """Trains every trial for its next epoch and evaluates it.

        Args:
            on_batches: told where the trials of a chunk stand, every `log_every` batches.

        Returns:
            By number, the finished epoch, or what kept that trial from finishing it. An epoch's
            seconds are the trial's share of the chunk's.
        """
        self._unfreeze()
        if self._chunks is None:
            self._chunks = self._cut_to_fit()
        outcomes: dict[int, Outcome | Exception] = {}
        for chunk in self._chunks:
            chunk.begin_epoch()
            self._finish_epoch(chunk, on_batches, outcomes, time.perf_counter())
        return outcomes

    def _unfreeze(self) -> None:
        """Begins anew, its optimizer too, with a trial whose whole network trains from now on."""
        for row in self.rows.values():
            model = row.trial.model
            if isinstance(model, Transferred) and model.unfreeze_after == row.epoch:
                self._thaw(row, model)
                self._chunks = None

    def _thaw(self, row: TrialState, model: Transferred) -> None:
        # The step of other trials of this kind holds on to the frozen one.
        thawed = copy.deepcopy(model)
        assert isinstance(thawed, nn.Module)
        load(thawed, row.tensors())
        thawed.unfreeze()
        row.trial = replace(row.trial, model=thawed)
        self.steps = Steps(row.trial, self.steps.compile, self.steps.bf16, self.steps.device)
        row.begin(self.steps)

    def _cut_to_fit(self) -> list[Chunk]:
        while True:
            try:
                return self._cut()
            except torch.OutOfMemoryError as error:
                if self.chunk == 1:
                    raise
                line = first_line(error)
                log.warning("%d trials do not fit into memory, trying halves: %s", self.chunk, line)
                self.chunk //= 2

    def _cut(self) -> list[Chunk]:
        rows, chunks = list(self.rows.values()), []
        while rows:
            size = self.chunk
            while size > len(rows):
                size //= 2
            chunks.append(Chunk(rows[:size], self.steps, self.data.train, self.batch_size))
            del rows[:size]
        return chunks

    def _finish_epoch(
        self,
        chunk: Chunk,
        on_batches: Callable[[list[Progress]], None],
        outcomes: dict[int, Outcome | Exception],
        began: float,
    ) -> None:
        """Trains a chunk to its epoch's end; where that fails, its halves, down to one trial."""
        try:
            while chunk.batch < chunk.batches:
                chunk.run(min(self.log_every, chunk.batches - chunk.batch))
                if chunk.batch % self.log_every == 0:
                    on_batches(
                        [
                            Progress(row.number, row.epoch, chunk.batch, *figures)
                            for row, figures in zip(chunk.rows, chunk.running())
                        ]
                    )
            trained, evaluated = chunk.running(), chunk.evaluate(self.data.validation)
        except Exception as error:
            # What failed for want of memory would hold on to what it had.
            traceback.clear_frames(error.__traceback__)
            if len(chunk.rows) == 1:
                outcomes[chunk.rows[0].number] = error
                return
            if isinstance(error, torch.OutOfMemoryError):
                self.chunk = len(chunk.rows) // 2
            line = first_line(error)
            log.warning("%d trials failed in one step, trying halves: %s", len(chunk.rows), line)
            self._chunks = None
            for half in chunk.halves():
                self._finish_epoch(half, on_batches, outcomes, began)
            return
        seconds = (time.perf_counter() - began) / len(chunk.rows)
        for row, training, validation in zip(chunk.rows, trained, evaluated):
            figures = Epoch(row.epoch, row.lr, *training, *validation, seconds=seconds)
            row.epoch_ended(figures)
            outcomes[row.number] = Outcome(figures, row.kept, row.is_exhausted)
            self._write_checkpoint(row)

    def _write_checkpoint(self, row: TrialState) -> None:
        """Writes a trial's checkpoint when it is due, but for one that ends here."""
        kept = row.trial.checkpoint
        if kept is None or not kept.is_due or row.epoch == row.trial.epochs:
            return
        if row.is_exhausted:
            return
        try:
            kept.write(row.state())
        except OSError as error:
            log.warning("%s: %s; the trial goes on without", kept.path, error.strerror)


def load(model: nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Puts what `Stack.remove` returned into a model of the same structure."""
    with torch.no_grad():
        for name, mine in (*model.named_parameters(), *untrained(model).items()):
            mine.copy_(tensors[name])
