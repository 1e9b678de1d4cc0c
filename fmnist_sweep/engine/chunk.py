"""A chunk: the rows of a stack that are trained in one step, from epoch to epoch."""

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch

from fmnist_sweep.engine.compiling import skip_guards
from fmnist_sweep.engine.cuda_graphs import can_capture, capture_cuda_graph
from fmnist_sweep.engine.data import Examples, class_weights, epoch_permutation
from fmnist_sweep.engine.functional_model import Evaluation, accumulation_dtype
from fmnist_sweep.engine.host_batches import HostBatches
from fmnist_sweep.engine.recipe import update_ema
from fmnist_sweep.engine.step import StepCache, StepTensors, TrialState


class Chunk:
    """Trials that are trained in the same step, for one or several epochs.

    As long as a chunk is in use, the tensors of its rows are views of the chunk's tensors.

    Args:
        rows: the trials; a trial with a `torch_optimizer` must be alone.
        step_cache: the steps of the trials' stack.
        examples: the training examples.
        batch_size: number of examples in a batch; more than there are mean a single batch.
    """

    def __init__(
        self, rows: Sequence[TrialState], step_cache: StepCache, examples: Examples, batch_size: int
    ) -> None:
        self.rows = list(rows)
        self.step_cache = step_cache
        self.examples = examples
        self.batch_size = min(batch_size, len(examples))
        self.batches = math.ceil(len(examples) / batch_size)
        self.device = step_cache.device
        self.class_weights = class_weights(examples.own_labels, step_cache.data.classes).to(
            self.device
        )
        first = rows[0]
        if first.torch_optimizer:  # holds views of the row's own tensor
            self.weights = first.weights.unsqueeze(0)
            self.optimizer_state = {n: t.unsqueeze(0) for n, t in first.optimizer_state.items()}
        else:
            self.weights = torch.stack([row.weights for row in rows])
            self.optimizer_state = {
                name: torch.stack([row.optimizer_state[name] for row in rows])
                for name in first.optimizer_state
            }
        self.buffers = {
            name: torch.stack([row.buffers[name] for row in rows]) for name in first.buffers
        }
        for index, row in enumerate(rows):
            row.weights = self.weights[index]
            row.optimizer_state = {n: tensor[index] for n, tensor in self.optimizer_state.items()}
            row.buffers = {name: buffer[index] for name, buffer in self.buffers.items()}
        # Sums over the epoch's batches so far: losses [0] and correct predictions [1] of each row.
        self.totals = torch.zeros(
            2, len(rows), dtype=accumulation_dtype(self.device), device=self.device
        )
        self.counter = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.batch = 0
        self._steps: dict[bool, Callable[[], torch.Tensor | None]] = {}
        self._has_stepped = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self.host_batches = self._make_host_batches()

    def _make_host_batches(self) -> HostBatches | None:
        if not self.examples.streamed:
            return None
        return HostBatches(self.examples, len(self.rows) * self.batch_size, self.device)

    def begin_epoch(self) -> None:
        """Begin the rows' next epoch and prepare the tables of its steps."""
        coefficients = np.stack([row.next_epoch() for row in self.rows], axis=-1)
        # For a model that draws random numbers itself; such a model trains alone.
        torch.manual_seed(_model_seed(self.rows[0].trial.seed, self.rows[0].epoch))
        self._prepare_tables(coefficients)
        self._graph = None  # reads the last epoch's tables
        self._steps = {}
        self.totals.zero_()
        self.counter.zero_()
        self.batch = 0

    def _prepare_tables(self, coefficients: np.ndarray) -> None:
        rows, size = self.rows, len(self.examples)
        orders = torch.stack([epoch_permutation(row.trial.seed, row.epoch, size) for row in rows])
        if self.examples.rows is not None:
            orders = self.examples.rows[orders]
        device = torch.device("cpu") if self.host_batches else self.device
        self.full_batches, self.last_batch = self._split_into_batches(orders, device)
        self.coefficients = torch.from_numpy(coefficients).float().to(self.device)
        keys = [_random_keys(row.trial.seed, row.epoch, self.batches) for row in rows]
        self.random_keys = torch.from_numpy(np.stack(keys, axis=1)).to(self.device)
        shape = self.step_cache.data.shape
        draws = [
            row.hyperparameters.recipe.draws(row.trial.seed, row.epoch, size, shape) for row in rows
        ]
        self.full_draws, self.last_draws = self._split_into_batches(
            torch.from_numpy(np.stack(draws)), self.device
        )

    def _split_into_batches(
        self, per_example: torch.Tensor, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Split [K, n, ...] into batches [batches, K, batch, ...] and rest [1, K, rest, ...]."""
        full = len(self.examples) // self.batch_size
        cut = full * self.batch_size
        shape = len(self.rows), full, self.batch_size, *per_example.shape[2:]
        batches = per_example[:, :cut].view(shape).transpose(0, 1).contiguous()
        return batches.to(device), per_example[:, cut:].unsqueeze(0).to(device)

    def run(self, batches: int) -> None:
        """Train all rows on the next `batches` batches."""
        end = self.batch + batches
        end_of_full = min(end, len(self.full_batches))
        if not self._has_stepped and batches:
            self._run_batch()
            self._has_stepped = True
        if self.step_cache.capturable is None and self.batch < end_of_full:
            self.step_cache.capturable = can_capture(self._run_batch)
        with skip_guards() if self.step_cache.has_guards(len(self.rows)) else nullcontext():
            if self.step_cache.capturable and self._graph is None and self.batch < end_of_full:
                self._graph = capture_cuda_graph(lambda: self._take_step(full=True), self.device)
                self.step_cache.capturable = self._graph is not None
            while self.batch < end:
                self._run_batch()
        if self.batch >= len(self.full_batches):
            self._graph = None  # frees its memory

    def _run_batch(self) -> None:
        full = self.batch < len(self.full_batches)
        if self.host_batches:
            self.host_batches.load(self.full_batches[self.batch] if full else self.last_batch[0])
        if full and self._graph:
            self._graph.replay()
        else:
            self._take_step(full)
        self.batch += 1

    def _take_step(self, full: bool) -> None:
        if full not in self._steps:
            self._steps[full] = self.step_cache.bind(self._tensors(full), full)
        if not full:
            self.counter.zero_()
        gradient = self._steps[full]()
        if gradient is not None:
            self._step_torch_optimizer(gradient[0])

    def _tensors(self, full: bool) -> StepTensors:
        first = 0 if full else len(self.full_batches)
        inputs, labels = self.examples.inputs, self.examples.labels
        batches = self.full_batches if full else self.last_batch
        if self.host_batches:
            inputs, labels, batches = self.host_batches.tensors(batches)
        return StepTensors(
            self.weights,
            self.optimizer_state,
            self.buffers,
            self.totals,
            self.counter,
            inputs,
            labels,
            batches,
            self.coefficients[first:] if first else self.coefficients,
            self.random_keys[first:] if first else self.random_keys,
            self.full_draws if full else self.last_draws,
            self.class_weights,
        )

    def _step_torch_optimizer(self, gradient: torch.Tensor) -> None:
        (row,) = self.rows
        assert row.torch_optimizer is not None
        row.torch_optimizer.step(
            self.step_cache.functional_model.unflatten(gradient),
            float(row.learning_rates[self.batch]),
        )
        if "ema" in self.optimizer_state:  # its coefficient is the last
            update_ema(self.optimizer_state["ema"], self.weights, self.coefficients[self.batch, -1])

    def running_means(self) -> list[tuple[float, float]]:
        """Return each row's mean training loss and accuracy over the epoch's batches so far."""
        seen = min(self.batch * self.batch_size, len(self.examples))
        return [(loss, accuracy) for loss, accuracy in (self.totals / seen).T.tolist()]

    def evaluate(self, examples: Examples) -> list[Evaluation]:
        """Evaluate each row on the examples."""
        weights = self.optimizer_state.get("ema", self.weights)
        return self.step_cache.evaluate(weights, self.buffers, examples)

    def halves(self) -> list["Chunk"]:
        """Split the rows into two chunks that continue at the current batch of the epoch.

        The chunk itself is of no use afterwards: it lets go of its tables and its graph.
        """
        self._graph = None
        self._steps = {}
        cut = len(self.rows) // 2
        halves = [self._with_rows(slice(None, cut)), self._with_rows(slice(cut, None))]
        del self.full_batches, self.last_batch, self.full_draws, self.last_draws
        del self.coefficients, self.random_keys
        return halves

    def _with_rows(self, part: slice) -> "Chunk":
        half = copy.copy(self)
        half.rows = self.rows[part]
        # Views: memory may be too short for copies, and the rows' own tensors are views of these.
        half.weights = self.weights[part]
        half.optimizer_state = {n: tensor[part] for n, tensor in self.optimizer_state.items()}
        half.buffers = {name: buffer[part] for name, buffer in self.buffers.items()}
        half.full_batches = self.full_batches[:, part].contiguous()
        half.last_batch = self.last_batch[:, part].contiguous()
        half.full_draws = self.full_draws[:, part].contiguous()
        half.last_draws = self.last_draws[:, part].contiguous()
        half.coefficients = self.coefficients[:, :, part].contiguous()
        half.random_keys = self.random_keys[:, part].contiguous()
        half.totals = self.totals[:, part].clone()
        half.counter = torch.full_like(self.counter, self.batch)
        half._steps = {}
        half._has_stepped = False
        half.host_batches = half._make_host_batches()
        return half


def _model_seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, 2]).generate_state(1)[0])


def _random_keys(seed: int, epoch: int, batches: int) -> np.ndarray:
    """Return int64 [batches] in [0, 2**32), from the seed and the epoch's number alone."""
    sequence = np.random.SeedSequence([seed, epoch, 1])
    return sequence.generate_state(batches, np.uint32).astype(np.int64)
