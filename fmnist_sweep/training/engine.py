"""Trains a stack of K >= 1 trials, all in one step; a trial alone is a stack of one.

All weights of the stack lie in one float32 tensor [K, P], a row a trial. A step gathers each
trial's own batch, takes the gradients with `torch.func` (vmap over the rows) and updates the
rows in place. Everything that changes from step to step (which images, learning rates, bias
corrections, dropout keys) is laid out on the device before an epoch begins and looked up by a
counter that lives there too: a step takes no argument from the host and waits for nothing.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fmnist_sweep.data.batches import Images, Protocol, normalise, order
from fmnist_sweep.record import Epoch
from fmnist_sweep.training import optim
from fmnist_sweep.training.compiling import compiled, settled
from fmnist_sweep.training.dropout import with_keyed_dropout
from fmnist_sweep.training.skeleton import Skeleton, accurate, untrained

log = logging.getLogger(__name__)


@dataclass
class Trial:
    """One configuration to be trained.

    model: float32, on the CPU, its weights drawn from `seed`; trained in place.
    optimizer: a class of `torch.optim`, with its arguments.
    seed: of the batch order and the dropout masks.
    """

    model: nn.Module
    optimizer: type[torch.optim.Optimizer]
    arguments: dict[str, Any]
    seed: int
    epochs: int


@dataclass(frozen=True)
class Progress:
    """Where a trial stands within an epoch: running means over the batches so far."""

    trial: int
    epoch: int
    batch: int
    loss: float
    accuracy: float


OnEpoch = Callable[[int, Epoch], bool]
OnBatches = Callable[[Progress], None]


def train(
    trials: Sequence[Trial],
    data: Protocol,
    *,
    batch_size: int,
    compile: bool,
    on_epoch: OnEpoch,
    on_batches: OnBatches,
    log_every: int,
) -> None:
    """Trains trials of one shape, optimizer class and batch size side by side.

    Args:
        on_epoch: told a trial's index and finished epoch; False ends that trial.
        on_batches: told where each trial stands, every `log_every` batches.
        compile: run the step under `torch.compile`.

    On return each trial's model holds its trained weights, on the CPU.
    """
    stack = Stack(trials, data.train, batch_size, compile)
    active = list(range(len(trials)))
    epoch = 0
    while active:
        epoch += 1
        began = time.perf_counter()
        stack.begin_epoch(epoch)
        while stack.batch < stack.batches:
            stack.run(min(log_every, stack.batches - stack.batch))
            if stack.batch % log_every == 0:
                for row, trial in enumerate(active):
                    on_batches(Progress(trial, epoch, stack.batch, *stack.running(row)))
        train_figures = [stack.running(row) for row in range(len(active))]
        val_figures = stack.skeleton.evaluate(stack.weights, stack.buffers, data.validation)
        seconds = time.perf_counter() - began
        going = []
        for row, trial in enumerate(active):
            figures = Epoch(
                epoch, stack.lr(row), *train_figures[row], *val_figures[row], seconds=seconds
            )
            if on_epoch(trial, figures) and epoch < trials[trial].epochs:
                going.append(row)
            else:
                stack.unload(row)
        if len(going) < len(active):
            active = [active[row] for row in going]
            stack.keep(going)


class Stack:
    """The tensors of the trials in training, row by row, and the step over them."""

    def __init__(
        self, trials: Sequence[Trial], images: Images, batch_size: int, compile: bool
    ) -> None:
        self.trials = list(trials)
        self.images = images
        self.batch_size = min(batch_size, len(images))
        self.batches = math.ceil(len(images) / batch_size)
        self.device = images.pixels.device
        self.keys = [with_keyed_dropout(trial.model) for trial in trials].pop()
        self.skeleton = Skeleton(trials[0].model)
        self.weights = torch.stack([self.skeleton.flat(t.model) for t in trials]).to(self.device)
        beside = [untrained(trial.model) for trial in trials]
        self.buffers = {
            name: torch.stack([tensors[name] for tensors in beside]).to(self.device)
            for name in beside[0]
        }
        rules = [optim.rule(t.optimizer, t.arguments) for t in trials]
        self.rules = [rule for rule in rules if rule is not None]
        self.foreign = None if self.rules else self._foreign_optimizer()
        moments = self.rules[0].moments if self.rules else 0
        self.moments = [torch.zeros_like(self.weights) for _ in range(moments)]
        self.totals = torch.zeros(2, len(trials), dtype=accurate(self.device), device=self.device)
        self.counter = torch.zeros((), dtype=torch.int64, device=self.device)
        self.steps_done = 0
        self._eager = self._step_with(self.skeleton.gradients)
        self.compile = compile
        self._prepare_step()

    def _foreign_optimizer(self) -> torch.optim.Optimizer:
        """An optimizer without a stacked counterpart: PyTorch's own class on views of our row."""
        if len(self.trials) > 1:
            raise ValueError(f"{self.trials[0].optimizer.__name__} trains in stacks of one only")
        views = self.skeleton.named(self.weights[0])
        self.parameters = [nn.Parameter(view) for view in views.values()]
        return self.trials[0].optimizer(self.parameters, **self.trials[0].arguments)

    def _step_with(self, gradients: Callable[..., Any]) -> Callable[..., torch.Tensor | None]:
        """The step as a function of tensors alone, which is what `torch.compile` wants."""
        update = self.rules[0].update if self.rules else None
        keys = self.keys

        def step(
            weights: torch.Tensor,
            moments: list[torch.Tensor],
            buffers: dict[str, torch.Tensor],
            totals: torch.Tensor,
            counter: torch.Tensor,
            pixels: torch.Tensor,
            labels: torch.Tensor,
            batches: torch.Tensor,
            numbers: torch.Tensor,
            dropout_keys: torch.Tensor,
        ) -> torch.Tensor | None:
            chosen = batches[counter]
            buffers = {**buffers, **dict.fromkeys(keys, dropout_keys[counter])}
            gradient, loss, correct = gradients(
                weights, buffers, normalise(pixels[chosen]), labels[chosen]
            )
            totals.add_(torch.stack([loss, correct]))
            if update is None:
                counter.add_(1)
                return gradient  # type: ignore[no-any-return]
            update(weights, gradient, moments, numbers[counter].unsqueeze(-1))
            counter.add_(1)
            return None

        return step

    def begin_epoch(self, epoch: int) -> None:
        """Lays out what each step of the epoch needs."""
        size, whole = len(self.images), len(self.images) // self.batch_size
        orders = torch.stack([order(trial.seed, epoch, size) for trial in self.trials])
        cut = whole * self.batch_size
        shape = (len(self.trials), whole, self.batch_size)
        self.batches_whole = (
            orders[:, :cut].view(shape).transpose(0, 1).contiguous().to(self.device)
        )
        self.batch_last = orders[:, cut:].unsqueeze(0).to(self.device)
        steps = np.arange(self.steps_done + 1, self.steps_done + self.batches + 1, dtype=float)
        self.steps_done += self.batches
        rates = [np.full(self.batches, self.lr(row)) for row in range(len(self.trials))]
        tables = [rule.coefficients(steps, lr) for rule, lr in zip(self.rules, rates)]
        table = np.stack(tables, axis=-1) if tables else np.zeros((self.batches, 0, 1))
        self.numbers = torch.from_numpy(table).float().to(self.device)
        self.dropout_keys = torch.from_numpy(
            np.stack([_dropout_keys(t.seed, epoch, self.batches) for t in self.trials], axis=1)
        ).to(self.device)
        self.totals.zero_()
        self.counter.zero_()
        self.batch = 0

    def _prepare_step(self) -> None:
        """Takes a step for the number of rows there are now."""
        self._step = compiled(self._eager, self.device) if self.compile else self._eager
        self.proven = False

    def run(self, batches: int) -> None:
        """The next `batches` batches of every trial."""
        if not self.proven:
            self._one_batch()
            self.proven = True
            batches -= 1
        with settled():
            for _ in range(batches):
                self._one_batch()

    def _one_batch(self) -> None:
        # The last, shorter batch runs as it is: one step an epoch does not repay a compile.
        whole = self.batch < len(self.batches_whole)
        step, batches, first = (
            (self._step, self.batches_whole, 0)
            if whole
            else (self._eager, self.batch_last, len(self.batches_whole))
        )
        if not whole:
            self.counter.zero_()
        gradient = step(
            self.weights,
            self.moments,
            self.buffers,
            self.totals,
            self.counter,
            self.images.pixels,
            self.images.labels,
            batches,
            self.numbers[first:] if first else self.numbers,
            self.dropout_keys[first:] if first else self.dropout_keys,
        )
        if self.foreign is not None:
            assert gradient is not None
            views = self.skeleton.named(gradient[0]).values()
            for parameter, view in zip(self.parameters, views, strict=True):
                parameter.grad = view
            self.foreign.step()
        self.batch += 1

    def running(self, row: int) -> tuple[float, float]:
        """A row's mean training loss and accuracy over the epoch's batches so far."""
        seen = min(self.batch * self.batch_size, len(self.images))
        loss, correct = (self.totals[:, row] / seen).tolist()
        return loss, correct

    def lr(self, row: int) -> float:
        """The learning rate of a trial's current epoch."""
        return float(self.trials[row].arguments["lr"])

    def unload(self, row: int) -> None:
        """Puts a row's weights and buffers into its trial's model."""
        model = self.trials[row].model
        with torch.no_grad():
            for name, view in self.skeleton.named(self.weights[row]).items():
                model.get_parameter(name).copy_(view)
            for name, tensor in untrained(model).items():
                tensor.copy_(self.buffers[name][row])

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all other rows, so that finished trials cost nothing."""
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self.trials = [self.trials[row] for row in rows]
        self.rules = [self.rules[row] for row in rows] if self.rules else []
        self.weights = self.weights[chosen]
        self.moments = [moment[chosen] for moment in self.moments]
        self.buffers = {name: buffer[chosen] for name, buffer in self.buffers.items()}
        self.totals = self.totals[:, chosen]
        self._prepare_step()


def _dropout_keys(seed: int, epoch: int, batches: int) -> np.ndarray:
    """Int64 [batches] in [0, 2**32), from the seed and the epoch's number alone."""
    sequence = np.random.SeedSequence([seed, epoch, 1])
    return sequence.generate_state(batches, np.uint32).astype(np.int64)
