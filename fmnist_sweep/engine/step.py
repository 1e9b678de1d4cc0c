"""The training step over a chunk of K >= 1 trials; a trial alone is a chunk of one.

All weights of a chunk lie in one float32 tensor [K, P], a row a trial. A step gathers each
trial's own batch, takes the gradients with `torch.func` (vmap over the rows) and updates the
rows in place. Everything that changes from step to step (which images, learning rates, bias
corrections, dropout keys) is laid out on the device before an epoch begins and looked up by a
counter that lives there too: a step takes no argument from the host and waits for nothing.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from fmnist_sweep.engine import functional_model, optimizers
from fmnist_sweep.engine.augmentation import augmented
from fmnist_sweep.engine.checkpoint import Checkpoint, State
from fmnist_sweep.engine.compiling import compiled, skip_guards
from fmnist_sweep.engine.cuda_graphs import can_capture, capture_cuda_graph
from fmnist_sweep.engine.data import Images, epoch_permutation, normalise
from fmnist_sweep.engine.early_stopping import EarlyStopping
from fmnist_sweep.engine.functional_model import FunctionalModel, accurate, untrained
from fmnist_sweep.engine.layers import with_stackable_layers
from fmnist_sweep.engine.optimizers import TorchOptimizer
from fmnist_sweep.engine.recipe import Recipe, clipped, scales, update_ema
from fmnist_sweep.engine.schedules import Schedule
from fmnist_sweep.results.record import Epoch


@dataclass
class Trial:
    """One configuration to be trained.

    model: float32, on the CPU, its weights drawn from `seed`; trained in place.
    optimizer: a class of `torch.optim`, with its arguments.
    seed: of the batch order, the dropout masks and the augmentation.
    recipe: what else its training does.
    checkpoint: where its state is kept while it trains; None for nowhere.
    """

    model: nn.Module
    optimizer: type[torch.optim.Optimizer]
    arguments: dict[str, Any]
    seed: int
    epochs: int
    recipe: Recipe = field(default_factory=Recipe)
    checkpoint: Checkpoint | None = None


class TrialState:
    """One trial's state in training: a row of its chunk's tensors, and how far it has come.

    Outside of a chunk the tensors are its own: weights and moments [P], buffers by name. An
    average of the weights is the last of the moments.

    Args:
        batches: in an epoch.
    """

    def __init__(self, number: int, trial: Trial, steps: "Steps", batches: int) -> None:
        self.number = number
        self.trial = trial
        self.batches = batches
        self.schedule = Schedule(trial.recipe.scheduler, trial.epochs, batches)
        early = trial.recipe.early_stopping
        self.stopping = EarlyStopping(early) if early else None
        self.best: dict[str, torch.Tensor] | None = None
        self.history: list[Epoch] = []
        self.epoch = 0
        self.begin(steps)

    def begin(self, steps: "Steps") -> None:
        """Takes the weights of the trial's model, the optimizer at its beginning."""
        trial = self.trial
        self.skeleton = steps.skeleton
        self.weights = weights = steps.skeleton.flat(trial.model).to(steps.device)
        self.buffers = {n: t.to(steps.device) for n, t in untrained(trial.model).items()}
        self.rule = optimizers.rule(trial.optimizer, trial.arguments)
        moments = self.rule.moments if self.rule else 0
        self.moments = [torch.zeros_like(weights) for _ in range(moments)]
        if trial.recipe.average is not None:
            self.moments.append(weights.clone())
        self.torch_optimizer: TorchOptimizer | None = None
        if self.rule is None:
            of = trial.optimizer, trial.arguments, trial.model, trial.recipe
            self.torch_optimizer = TorchOptimizer(*of, steps.skeleton.named(weights))
        self.steps = 0
        self.rates = np.zeros(self.batches)

    def next_epoch(self) -> np.ndarray:
        """Begins an epoch; the numbers of its steps, float64 [batches, numbers]."""
        self.epoch += 1
        self.rates = self.trial.arguments["lr"] * self.schedule.factors(self.epoch)
        steps = self.steps + np.arange(1, self.batches + 1, dtype=float)
        self.steps += self.batches
        numbers = self.trial.recipe.numbers(steps)
        if self.rule is None:
            return numbers
        return np.concatenate([self.rule.coefficients(steps, self.rates), numbers], axis=1)

    def epoch_ended(self, figures: Epoch) -> None:
        """Takes the figures of the epoch that it has finished."""
        if self._follow(figures):
            self.best = {name: tensor.clone() for name, tensor in self.tensors().items()}

    def _follow(self, figures: Epoch) -> bool:
        """Tells those who decide by an epoch's figures; whether its weights are to be kept."""
        self.history.append(figures)
        self.schedule.epoch_ended(figures)
        return self.stopping is not None and self.stopping.take(figures)

    def state(self) -> State:
        """All that its next epoch depends on and that its trial does not say."""
        optimizers = self.torch_optimizer.optimizers if self.torch_optimizer else []
        return {
            "history": [astuple(figures) for figures in self.history],
            "kept_epoch": self.kept.epoch,
            "steps": self.steps,
            # Copies, as a view would be saved with all of its chunk.
            "weights": self.weights.clone(),
            "moments": [moment.clone() for moment in self.moments],
            "buffers": {name: buffer.clone() for name, buffer in self.buffers.items()},
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "best": self.best,
        }

    def restore(self, state: State) -> None:
        """Goes on from a state of the same trial."""
        for figures in state["history"]:
            self._follow(Epoch(*figures))
        self.epoch, self.steps = len(self.history), state["steps"]
        self.weights.copy_(state["weights"])  # in place: a torch_optimizer optimizer holds on to it
        self.moments = [moment.to(self.weights.device) for moment in state["moments"]]
        self.buffers = {n: t.to(self.weights.device) for n, t in state["buffers"].items()}
        for optimizer, own in zip(
            self.torch_optimizer.optimizers if self.torch_optimizer else [], state["optimizers"]
        ):
            optimizer.load_state_dict(own)
        self.best = state["best"]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers by name; the parameters' average where there is one."""
        averaged = self.trial.recipe.average is not None
        weights = self.moments[-1] if averaged else self.weights
        return {**self.skeleton.named(weights), **self.buffers}

    @property
    def kept(self) -> Epoch:
        """The epoch whose weights the trial would end with now."""
        return self.stopping.best if self.stopping and self.stopping.best else self.history[-1]

    @property
    def is_exhausted(self) -> bool:
        """Early stopping ends the trial here."""
        return self.stopping is not None and self.stopping.exhausted

    @property
    def lr(self) -> float:
        """The learning rate of the current epoch's last step."""
        return float(self.rates[-1])


Step = Callable[..., torch.Tensor | None]


class Steps:
    """The step of one kind of trial, made once for each number of rows.

    Args:
        trial: one of its kind; its layers are replaced by stackable ones (see `layers`).
        compile: run the step under `torch.compile`.
        bf16: see `FunctionalModel`.
    """

    def __init__(self, trial: Trial, compile: bool, bf16: bool, device: torch.device) -> None:
        self.keys = with_stackable_layers(trial.model)
        way, _ = functional_model.way(trial.model, device, bf16)
        self.skeleton = FunctionalModel(trial.model, way, bf16)
        self.rule = optimizers.rule(trial.optimizer, trial.arguments)
        self.recipe = trial.recipe
        self.scales = scales(trial.model, trial.recipe, device)
        self.compile = compile and way != "plain"
        self.bf16 = bf16
        self.device = device
        # As a CUDA graph; None until it has been tried.
        may_be = device.type == "cuda" and way != "plain" and self.rule is not None
        self.capturable: bool | None = None if may_be else False
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
        of_update = self.rule.moments if self.rule else 0
        keys, parts, factors = self.keys, self.recipe.parts, self.scales
        changes = self.recipe.changes

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
            random_keys: torch.Tensor,
            drawn: torch.Tensor,
        ) -> torch.Tensor | None:
            def current(table: torch.Tensor) -> torch.Tensor:
                # table[counter] would wait for the device to say where the counter stands.
                return table.index_select(0, counter)[0]

            chosen = current(batches)
            buffers = {**buffers, **dict.fromkeys(keys, current(random_keys))}
            now = current(numbers)
            of_rule = len(now) - len(parts)
            part = dict(zip(parts, now[of_rule:]))
            images = normalise(pixels[chosen])
            if changes:
                images = augmented(images, current(drawn), changes)
            gradient, loss, correct = gradients(
                weights, buffers, images, labels[chosen], part.get("smoothing")
            )
            if "clip" in part:
                gradient = clipped(gradient, part["clip"])
            if update is not None:
                coefficients = now[:of_rule].unsqueeze(-1)
                update(weights, gradient, moments[:of_update], coefficients, factors)
                if "average" in part:
                    update_ema(moments[-1], weights, part["average"])
            # Last, so that a step for which memory does not suffice has not been counted.
            totals.add_(torch.stack([loss, correct]))
            counter.add_(1)
            return gradient if update is None else None

        return step


class Chunk:
    """Rows trained in one step, for one epoch or several.

    While it lives the rows' tensors are views of its own: what it learns they have learned.
    """

    def __init__(
        self, rows: Sequence[TrialState], steps: Steps, images: Images, batch_size: int
    ) -> None:
        self.rows = list(rows)
        self.steps = steps
        self.images = images
        self.batch_size = min(batch_size, len(images))
        self.batches = math.ceil(len(images) / batch_size)
        self.device = images.pixels.device
        if rows[0].torch_optimizer:  # which holds on to the very tensor, and trains alone
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
        self.counter = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.batch = 0
        self._step = steps.of(len(rows))
        self._proven = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def begin_epoch(self) -> None:
        """Lays out what each step of the rows' next epoch needs."""
        table = np.stack([row.next_epoch() for row in self.rows], axis=-1)
        # For a model that draws random numbers itself, which trains alone.
        torch.manual_seed(_seed(self.rows[0].trial.seed, self.rows[0].epoch))
        self._lay_out(table)
        self._graph = None  # it reads the last epoch's tables
        self.totals.zero_()
        self.counter.zero_()
        self.batch = 0

    def _lay_out(self, numbers: np.ndarray) -> None:
        rows, size = self.rows, len(self.images)
        orders = torch.stack([epoch_permutation(row.trial.seed, row.epoch, size) for row in rows])
        self.batches_whole, self.batch_last = self._in_batches(orders)
        self.numbers = torch.from_numpy(numbers).float().to(self.device)
        keys = [_random_keys(row.trial.seed, row.epoch, self.batches) for row in rows]
        self.random_keys = torch.from_numpy(np.stack(keys, axis=1)).to(self.device)
        drawn = [row.trial.recipe.draws(row.trial.seed, row.epoch, size) for row in rows]
        self.drawn_whole, self.drawn_last = self._in_batches(torch.from_numpy(np.stack(drawn)))

    def _in_batches(self, of_images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[K, n, ...] as whole batches [batches, K, batch, ...] and the rest [1, K, rest, ...]."""
        whole = len(self.images) // self.batch_size
        cut = whole * self.batch_size
        shape = len(self.rows), whole, self.batch_size, *of_images.shape[2:]
        batches = of_images[:, :cut].view(shape).transpose(0, 1).contiguous()
        return batches.to(self.device), of_images[:, cut:].unsqueeze(0).to(self.device)

    def run(self, batches: int) -> None:
        """The next `batches` batches of every row."""
        end = self.batch + batches
        whole = min(end, len(self.batches_whole))
        if not self._proven and batches:
            self._one_batch()
            self._proven = True
        if self.steps.capturable is None and self.batch < whole:
            self.steps.capturable = can_capture(self._one_batch)
        with skip_guards():
            if self.steps.capturable and self._graph is None and self.batch < whole:
                self._graph = capture_cuda_graph(lambda: self._take_step(whole=True), self.device)
                self.steps.capturable = self._graph is not None
            while self.batch < end:
                self._one_batch()
        if self.batch >= len(self.batches_whole):
            self._graph = None  # its memory is wanted elsewhere

    def _one_batch(self) -> None:
        whole = self.batch < len(self.batches_whole)
        if whole and self._graph:
            self._graph.replay()
        else:
            self._take_step(whole)
        self.batch += 1

    def _take_step(self, whole: bool) -> None:
        # The last, shorter batch runs as it is: one step an epoch does not repay a compile.
        step, batches, drawn, first = (
            (self._step, self.batches_whole, self.drawn_whole, 0)
            if whole
            else (self.steps.eager, self.batch_last, self.drawn_last, len(self.batches_whole))
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
            self.random_keys[first:] if first else self.random_keys,
            drawn,
        )
        if gradient is not None:
            self._step_torch_optimizer(gradient[0])

    def _step_torch_optimizer(self, gradient: torch.Tensor) -> None:
        (row,) = self.rows
        assert row.torch_optimizer is not None
        row.torch_optimizer.step(self.steps.skeleton.named(gradient), float(row.rates[self.batch]))
        if "average" in self.steps.recipe.parts:
            update_ema(self.moments[-1], self.weights, self.numbers[self.batch, -1])

    def running(self) -> list[tuple[float, float]]:
        """Each row's mean training loss and accuracy over the epoch's batches so far."""
        seen = min(self.batch * self.batch_size, len(self.images))
        return [(loss, correct) for loss, correct in (self.totals / seen).T.tolist()]

    def evaluate(self, images: Images) -> list[tuple[float, float]]:
        """Each row's mean loss and accuracy on the images."""
        averaged = "average" in self.steps.recipe.parts
        weights = self.moments[-1] if averaged else self.weights
        return self.steps.skeleton.evaluate(weights, self.buffers, images)

    def halves(self) -> list["Chunk"]:
        """The rows in two chunks that go on where this one stands within its epoch."""
        self._graph = None  # its memory is wanted for the halves
        cut = len(self.rows) // 2
        return [self._part(slice(None, cut)), self._part(slice(cut, None))]

    def _part(self, part: slice) -> "Chunk":
        half = copy.copy(self)
        half.rows = self.rows[part]
        # Views: there may be no memory for copies, and the rows' own tensors are such too.
        half.weights = self.weights[part]
        half.moments = [moment[part] for moment in self.moments]
        half.buffers = {name: buffer[part] for name, buffer in self.buffers.items()}
        half.batches_whole = self.batches_whole[:, part].contiguous()
        half.batch_last = self.batch_last[:, part].contiguous()
        half.drawn_whole = self.drawn_whole[:, part].contiguous()
        half.drawn_last = self.drawn_last[:, part].contiguous()
        half.numbers = self.numbers[:, :, part].contiguous()
        half.random_keys = self.random_keys[:, part].contiguous()
        half.totals = self.totals[:, part].clone()
        half.counter = torch.full_like(self.counter, self.batch)
        half._step = self.steps.of(len(half.rows))
        half._proven = False
        return half


def _seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, 2]).generate_state(1)[0])


def _random_keys(seed: int, epoch: int, batches: int) -> np.ndarray:
    """Int64 [batches] in [0, 2**32), from the seed and the epoch's number alone."""
    sequence = np.random.SeedSequence([seed, epoch, 1])
    return sequence.generate_state(batches, np.uint32).astype(np.int64)
