"""The training step over a chunk of K >= 1 trials; a trial alone is a chunk of one.

All weights of a chunk lie in one float32 tensor [K, P], a row a trial. A step gathers each
trial's own batch, takes the gradients with `torch.func` (vmap over the rows) and updates the
rows in place. Everything that changes from step to step (which images, learning rates, bias
corrections, dropout keys) is laid out on the device before an epoch begins and looked up by a
counter that lives there too: a step takes no argument from the host and waits for nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from fmnist_sweep.data.batches import Images, normalise, order
from fmnist_sweep.training import optim
from fmnist_sweep.training.compiling import compiled, settled
from fmnist_sweep.training.dropout import with_keyed_dropout
from fmnist_sweep.training.skeleton import Skeleton, accurate, unstackable, untrained


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


class Row:
    """One trial's state in training: a row of its chunk's tensors, and how far it has come.

    Outside of a chunk the tensors are its own: weights and moments [P], buffers by name.
    """

    def __init__(self, number: int, trial: Trial, skeleton: Skeleton, device: torch.device) -> None:
        self.number = number
        self.trial = trial
        self.weights = skeleton.flat(trial.model).to(device)
        self.buffers = {name: t.to(device) for name, t in untrained(trial.model).items()}
        self.rule = optim.rule(trial.optimizer, trial.arguments)
        moments = self.rule.moments if self.rule else 0
        self.moments = [torch.zeros_like(self.weights) for _ in range(moments)]
        self.foreign = None if self.rule else _Foreign(trial, skeleton, self.weights)
        self.epoch = 0
        self.steps = 0

    @property
    def lr(self) -> float:
        """The learning rate of the trial's current epoch."""
        return float(self.trial.arguments["lr"])


class _Foreign:
    """An optimizer without a stacked counterpart: PyTorch's own class on views of a row."""

    def __init__(self, trial: Trial, skeleton: Skeleton, weights: torch.Tensor) -> None:
        self.skeleton = skeleton
        self.weights = weights
        self.parameters = [nn.Parameter(view) for view in skeleton.named(weights).values()]
        self.optimizer = trial.optimizer(self.parameters, **trial.arguments)

    def step(self, gradient: torch.Tensor) -> None:
        views = self.skeleton.named(gradient).values()
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.grad = view
        self.optimizer.step()


Step = Callable[..., torch.Tensor | None]


class Steps:
    """The step of one kind of trial, made once for each number of rows.

    Args:
        trial: one of its kind; its `nn.Dropout` are replaced by dropout of its own stream.
        compile: run the step under `torch.compile`.
        bf16: see `Skeleton`.
    """

    def __init__(self, trial: Trial, compile: bool, bf16: bool, device: torch.device) -> None:
        self.keys = with_keyed_dropout(trial.model)
        stacked = unstackable(trial.model) is None
        self.skeleton = Skeleton(trial.model, stacked, bf16)
        self.rule = optim.rule(trial.optimizer, trial.arguments)
        self.compile = compile and stacked
        self.device = device
        self.eager = self._step()
        self._compiled: dict[int, Step] = {}

    def of(self, rows: int) -> Step:
        """The step for chunks of so many rows."""
        if not self.compile:
            return self.eager
        if rows not in self._compiled:
            self._compiled[rows] = compiled(self._step(), self.device)
        return self._compiled[rows]

    def _step(self) -> Step:
        """The step as a function of tensors alone, which is what `torch.compile` wants."""
        gradients = self.skeleton.gradients
        update = self.rule.update if self.rule else None
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
                return gradient
            update(weights, gradient, moments, numbers[counter].unsqueeze(-1))
            counter.add_(1)
            return None

        return step


class Chunk:
    """Rows trained in one step, for one epoch or several.

    While it lives the rows' tensors are views of its own: what it learns they have learned.
    """

    def __init__(self, rows: Sequence[Row], steps: Steps, images: Images, batch_size: int) -> None:
        self.rows = list(rows)
        self.steps = steps
        self.images = images
        self.batch_size = min(batch_size, len(images))
        self.batches = math.ceil(len(images) / batch_size)
        self.device = images.pixels.device
        if len(rows) == 1:  # a foreign optimizer holds on to the very tensor
            self.weights = rows[0].weights.unsqueeze(0)
            self.moments = [moment.unsqueeze(0) for moment in rows[0].moments]
        else:
            self.weights = torch.stack([row.weights for row in rows])
            self.moments = [torch.stack(each) for each in zip(*(row.moments for row in rows))]
        self.buffers = {
            name: torch.stack([row.buffers[name] for row in rows]) for name in rows[0].buffers
        }
        for at, row in enumerate(rows):
            row.weights = self.weights[at]
            row.moments = [moment[at] for moment in self.moments]
            row.buffers = {name: buffer[at] for name, buffer in self.buffers.items()}
        self.totals = torch.zeros(2, len(rows), dtype=accurate(self.device), device=self.device)
        self.counter = torch.zeros((), dtype=torch.int64, device=self.device)
        self.batch = 0
        self._step = steps.of(len(rows))
        self._proven = False

    def begin_epoch(self) -> None:
        """Lays out what each step of the rows' next epoch needs."""
        for row in self.rows:
            row.epoch += 1
        # For a model that draws random numbers itself, which trains alone.
        torch.manual_seed(_seed(self.rows[0].trial.seed, self.rows[0].epoch))
        self._lay_out()
        for row in self.rows:
            row.steps += self.batches
        self.totals.zero_()
        self.counter.zero_()
        self.batch = 0

    def _lay_out(self) -> None:
        rows, size = self.rows, len(self.images)
        whole = size // self.batch_size
        orders = torch.stack([order(row.trial.seed, row.epoch, size) for row in rows])
        cut = whole * self.batch_size
        self.batches_whole = (
            orders[:, :cut]
            .view(len(rows), whole, self.batch_size)
            .transpose(0, 1)
            .contiguous()
            .to(self.device)
        )
        self.batch_last = orders[:, cut:].unsqueeze(0).to(self.device)
        ahead = np.arange(1, self.batches + 1, dtype=float)
        tables = [
            row.rule.coefficients(row.steps + ahead, np.full(self.batches, row.lr))
            for row in rows
            if row.rule
        ]
        table = np.stack(tables, axis=-1) if tables else np.zeros((self.batches, 0, 1))
        self.numbers = torch.from_numpy(table).float().to(self.device)
        keys = [_dropout_keys(row.trial.seed, row.epoch, self.batches) for row in rows]
        self.dropout_keys = torch.from_numpy(np.stack(keys, axis=1)).to(self.device)

    def run(self, batches: int) -> None:
        """The next `batches` batches of every row."""
        if not self._proven and batches:
            self._one_batch()
            self._proven = True
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
            else (self.steps.eager, self.batch_last, len(self.batches_whole))
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
        foreign = self.rows[0].foreign
        if foreign is not None:
            assert gradient is not None
            foreign.step(gradient[0])
        self.batch += 1

    def running(self) -> list[tuple[float, float]]:
        """Each row's mean training loss and accuracy over the epoch's batches so far."""
        seen = min(self.batch * self.batch_size, len(self.images))
        return [(loss, correct) for loss, correct in (self.totals / seen).T.tolist()]

    def evaluate(self, images: Images) -> list[tuple[float, float]]:
        """Each row's mean loss and accuracy on the images."""
        return self.steps.skeleton.evaluate(self.weights, self.buffers, images)

    def halves(self) -> list["Chunk"]:
        """The rows in two chunks that go on where this one stands within its epoch."""
        cut = len(self.rows) // 2
        halves = []
        for part in (slice(None, cut), slice(cut, None)):
            half = Chunk(self.rows[part], self.steps, self.images, self.batch_size)
            half.batches_whole = self.batches_whole[:, part].contiguous()
            half.batch_last = self.batch_last[:, part].contiguous()
            half.numbers = self.numbers[:, :, part].contiguous()
            half.dropout_keys = self.dropout_keys[:, part].contiguous()
            half.totals.copy_(self.totals[:, part])
            half.counter.copy_(self.counter)
            half.batch = self.batch
            halves.append(half)
        return halves


def _seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, 2]).generate_state(1)[0])


def _dropout_keys(seed: int, epoch: int, batches: int) -> np.ndarray:
    """Int64 [batches] in [0, 2**32), from the seed and the epoch's number alone."""
    sequence = np.random.SeedSequence([seed, epoch, 1])
    return sequence.generate_state(batches, np.uint32).astype(np.int64)
