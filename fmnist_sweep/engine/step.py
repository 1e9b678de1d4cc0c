"""The training step of a chunk of K >= 1 trials; a trial that trains alone is a chunk of one.

The weights of a chunk are one float32 tensor [K, P], one row per trial. A step gathers each trial's
own batch, computes the gradients with `torch.func` (vmap over the rows) and updates the rows in
place. Everything that changes from step to step (indices of examples, learning rates, bias
corrections, dropout keys) is put into tables on the device before an epoch begins. The step looks
its entries up by a counter that is on the device too: it takes no argument from the host and never
waits for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from fmnist_sweep.engine import functional_model, optimizers
from fmnist_sweep.engine.augmentation import augmented
from fmnist_sweep.engine.checkpoint import Checkpoint, State
from fmnist_sweep.engine.compiling import compiled
from fmnist_sweep.engine.data import DataFormat, Examples
from fmnist_sweep.engine.early_stopping import EarlyStopping
from fmnist_sweep.engine.functional_model import (
    Evaluation,
    FunctionalModel,
    accumulation_dtype,
    buffers_and_frozen,
)
from fmnist_sweep.engine.layers import with_stackable_layers
from fmnist_sweep.engine.optimizers import TorchOptimizer
from fmnist_sweep.engine.recipe import Recipe, clip_gradients, parameter_scales, update_ema
from fmnist_sweep.engine.schedules import Schedule
from fmnist_sweep.engine.step_library import FlatStep, StepLibrary
from fmnist_sweep.results.record import Epoch


class Hyperparameters(NamedTuple):
    """The settings of a trial that can change between two epochs.

    arguments: the optimizer's keyword arguments.
    recipe: additions to plain gradient steps; they have the same parts in all epochs.
    buffers: the model's buffers that its configuration sets, such as dropout rates, by name.
    """

    arguments: dict[str, Any]
    recipe: Recipe
    buffers: dict[str, torch.Tensor]


@dataclass
class Trial:
    """A configuration to be trained.

    model: float32, on the CPU, initialized from `seed`; trained in place.
    optimizer: a class of `torch.optim`.
    arguments: the optimizer's keyword arguments, among them "lr".
    seed: determines the batch order, the dropout masks and the augmentation.
    epochs: number of epochs.
    recipe: additions to plain gradient steps.
    checkpoint: where the state is saved during training; None for nowhere.
    changes: other hyperparameters from an epoch on, in the order of the epochs.
    """

    model: nn.Module
    optimizer: type[torch.optim.Optimizer]
    arguments: dict[str, Any]
    seed: int
    epochs: int
    recipe: Recipe = field(default_factory=Recipe)
    checkpoint: Checkpoint | None = None
    changes: Sequence[tuple[int, Hyperparameters]] = ()


class TrialState:
    """The state of a trial in training: weights, optimizer state, buffers and history.

    Weights and optimizer state are tensors [P]. `optimizer_state` holds the tensors that
    `StackedOptimizer.state_names` lists, and under "ema" the moving average of the weights if the
    recipe has one. As long as the trial belongs to a chunk, its tensors are views of the chunk's.

    Args:
        number: identifies the trial in its stack.
        trial: the trial.
        step_cache: the steps of the trial's stack.
        batches: number of batches in an epoch.
    """

    def __init__(self, number: int, trial: Trial, step_cache: "StepCache", batches: int) -> None:
        self.number = number
        self.trial = trial
        self.batches = batches
        self.schedule = Schedule(trial.recipe.scheduler, trial.epochs, batches)
        early = trial.recipe.early_stopping
        self.stopping = EarlyStopping(early) if early else None
        self.best: dict[str, torch.Tensor] | None = None
        self.history: list[Epoch] = []
        self.epoch = 0
        self.begin(step_cache)

    def begin(self, step_cache: "StepCache") -> None:
        """Copy the weights of the trial's model and initialize the optimizer."""
        trial, device = self.trial, step_cache.device
        self.hyperparameters = Hyperparameters(trial.arguments, trial.recipe, {})
        self.functional_model = step_cache.functional_model
        self.weights = weights = self.functional_model.flatten(trial.model).to(device)
        self.buffers = {n: t.to(device) for n, t in buffers_and_frozen(trial.model).items()}
        self.stacked_optimizer = optimizers.stacked_optimizer(trial.optimizer, trial.arguments)
        names = self.stacked_optimizer.state_names if self.stacked_optimizer else ()
        self.optimizer_state = {name: torch.zeros_like(weights) for name in names}
        if trial.recipe.average is not None:
            self.optimizer_state["ema"] = weights.clone()
        self.torch_optimizer: TorchOptimizer | None = None
        if self.stacked_optimizer is None:
            views = self.functional_model.unflatten(weights)
            self.torch_optimizer = TorchOptimizer(
                trial.optimizer, trial.arguments, trial.model, trial.recipe, views
            )
        self.steps_taken = 0
        self.learning_rates = np.zeros(self.batches)

    def next_epoch(self) -> np.ndarray:
        """Begin an epoch and return the coefficients of its steps.

        Returns:
            float64 [batches, C]: the coefficients of the stacked optimizer, if there is one,
            followed by those of the recipe.
        """
        self.epoch += 1
        self._change_hyperparameters()
        arguments, recipe, _ = self.hyperparameters
        self.learning_rates = arguments["lr"] * self.schedule.factors(self.epoch)
        steps = self.steps_taken + np.arange(1, self.batches + 1, dtype=float)
        self.steps_taken += self.batches
        of_recipe = recipe.coefficients(steps)
        if self.stacked_optimizer is None:
            return of_recipe
        of_optimizer = self.stacked_optimizer.coefficients(steps, self.learning_rates)
        return np.concatenate([of_optimizer, of_recipe], axis=1)

    def _change_hyperparameters(self) -> None:
        """Take the hyperparameters of the current epoch."""
        changes = [values for epoch, values in self.trial.changes if epoch <= self.epoch]
        if not changes or changes[-1] is self.hyperparameters:
            return
        self.hyperparameters = arguments, _, buffers = changes[-1]
        self.stacked_optimizer = optimizers.stacked_optimizer(self.trial.optimizer, arguments)
        for name, buffer in buffers.items():
            self.buffers[name].copy_(buffer)  # in place: a view of the chunk's tensor

    def epoch_ended(self, metrics: Epoch) -> None:
        """Record the metrics of the finished epoch; keep a copy of the weights if it is the best.

        Copies are only kept under early stopping.
        """
        if self._record(metrics):
            self.best = {name: tensor.clone() for name, tensor in self.tensors().items()}

    def _record(self, metrics: Epoch) -> bool:
        """Update history, schedule and early stopping; return whether the epoch is the best."""
        self.history.append(metrics)
        self.schedule.epoch_ended(metrics)
        return self.stopping is not None and self.stopping.take(metrics)

    def state(self) -> State:
        """Return everything that the next epoch depends on and the trial does not determine."""
        torch_optimizers = self.torch_optimizer.optimizers if self.torch_optimizer else []
        return {
            "history": [astuple(metrics) for metrics in self.history],
            "kept_epoch": self.kept.epoch,
            "steps_taken": self.steps_taken,
            # Cloned, because torch.save would save a view with all of its chunk.
            "weights": self.weights.clone(),
            "optimizer_state": {n: tensor.clone() for n, tensor in self.optimizer_state.items()},
            "buffers": {name: buffer.clone() for name, buffer in self.buffers.items()},
            "torch_optimizers": [optimizer.state_dict() for optimizer in torch_optimizers],
            "best": self.best,
        }

    def restore(self, state: State) -> None:
        """Resume from a state of the same trial."""
        for metrics in state["history"]:
            self._record(Epoch(*metrics))
        self.epoch, self.steps_taken = len(self.history), state["steps_taken"]
        self.weights.copy_(state["weights"])  # in place: torch_optimizer holds views of it
        device = self.weights.device
        self.optimizer_state = {n: t.to(device) for n, t in state["optimizer_state"].items()}
        self.buffers = {n: t.to(device) for n, t in state["buffers"].items()}
        torch_optimizers = self.torch_optimizer.optimizers if self.torch_optimizer else []
        for optimizer, optimizer_state in zip(torch_optimizers, state["torch_optimizers"]):
            optimizer.load_state_dict(optimizer_state)
        self.best = state["best"]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return parameters (or their moving average, if there is one) and buffers by name."""
        weights = self.optimizer_state.get("ema", self.weights)
        return {**self.functional_model.unflatten(weights), **self.buffers}

    @property
    def kept(self) -> Epoch:
        """The epoch whose weights the trial would keep if it ended now."""
        return self.stopping.best if self.stopping and self.stopping.best else self.history[-1]

    @property
    def is_exhausted(self) -> bool:
        """True if early stopping ends the trial after the current epoch."""
        return self.stopping is not None and self.stopping.exhausted

    @property
    def lr(self) -> float:
        """The learning rate of the current epoch's last step."""
        return float(self.learning_rates[-1])


Step = Callable[..., torch.Tensor | None]


class StepTensors(NamedTuple):
    """The tensors that a step reads and writes, for K rows and n examples.

    weights: float32 [K, P].
    optimizer_state: float32 [K, P] by name.
    buffers: what `buffers_and_frozen` returns, with a leading dimension K.
    totals: sums of losses [0] and of correct predictions [1] so far: [2, K].
    counter: the number of the step in the tables below: int64 [1].
    inputs, labels: the training examples: uint8 or float32 [n, *shape] and int64 [n].
    batches: the numbers of each step's examples: int64 [steps, K, batch].
    coefficients: of the optimizer and the recipe: float32 [steps, C, K].
    random_keys: keys of the dropout masks: int64 [steps, K].
    augmentation_draws: see `augmentation.draws`: float32 [steps, K, batch, D].
    class_weights: inverse frequencies of the classes: float32 [classes].
    """

    weights: torch.Tensor
    optimizer_state: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    totals: torch.Tensor
    counter: torch.Tensor
    inputs: torch.Tensor
    labels: torch.Tensor
    batches: torch.Tensor
    coefficients: torch.Tensor
    random_keys: torch.Tensor
    augmentation_draws: torch.Tensor
    class_weights: torch.Tensor

    def flat(self) -> list[torch.Tensor]:
        """Return the tensors as a list."""
        weights, state, buffers, *others = self
        return [weights, *state.values(), *buffers.values(), *others]

    def unflatten(self, flat: Sequence[torch.Tensor]) -> "StepTensors":
        """Return other tensors with the same names, given as `flat` returns them."""
        end_of_state = 1 + len(self.optimizer_state)
        end_of_buffers = end_of_state + len(self.buffers)
        return StepTensors(
            flat[0],
            dict(zip(self.optimizer_state, flat[1:end_of_state])),
            dict(zip(self.buffers, flat[end_of_state:end_of_buffers])),
            *flat[end_of_buffers:],
        )


class StepCache:
    """The step functions of one stack key, compiled once per number of rows.

    Args:
        trial: any trial with the stack key; its layers are replaced by `with_stackable_layers`.
        data: the format of the examples.
        compile: compile the step.
        bf16: see `FunctionalModel`.
        device: the device of the training.
        library: keeps steps on disk, if the device is a CPU; None to trace and compile them anew.
    """

    def __init__(
        self,
        trial: Trial,
        data: DataFormat,
        compile: bool,
        bf16: bool,
        device: torch.device,
        library: StepLibrary | None = None,
    ) -> None:
        self.dropout_keys = with_stackable_layers(trial.model)
        execution_mode, _ = functional_model.choose_execution_mode(
            trial.model, data.shape, device, bf16
        )
        self.data = data
        self.functional_model = FunctionalModel(trial.model, execution_mode, bf16, data.scaling)
        self.stacked_optimizer = optimizers.stacked_optimizer(trial.optimizer, trial.arguments)
        self.recipe = trial.recipe
        self.parameter_scales = parameter_scales(trial.model, trial.recipe, device)
        self.compile = compile and execution_mode != "plain"
        self.bf16 = bf16
        self.device = device
        # Whether the step can be captured as a CUDA graph; None until this has been tried.
        may_capture = execution_mode != "plain" and self.stacked_optimizer is not None
        self.capturable: bool | None = None if device.type == "cuda" and may_capture else False
        self.library = library if execution_mode != "plain" and device.type == "cpu" else None
        self.eager = self._make_step()
        self._compiled: dict[int, Step] = {}

    def bind(self, tensors: StepTensors, full: bool) -> Callable[[], torch.Tensor | None]:
        """Return a function that takes a step with these tensors.

        Args:
            tensors: the step's tensors.
            full: whether the batches are full. The last, shorter batch is not compiled: one step
                per epoch does not repay it.

        Returns:
            A function that returns the gradient [K, P] if the optimizer is PyTorch's own.
        """
        flat = tensors.flat()
        kept = self._kept_step(tensors, flat, full)
        if kept is not None:
            return lambda: next(iter(kept(flat)), None)
        step = self._for_rows(len(tensors.weights)) if full else self.eager
        return partial(step, *tensors)

    def _kept_step(
        self, tensors: StepTensors, flat: list[torch.Tensor], full: bool
    ) -> FlatStep | None:
        if self.library is None:
            return None

        def step(flat: list[torch.Tensor]) -> list[torch.Tensor]:
            gradient = self.eager(*tensors.unflatten(flat))
            return [] if gradient is None else [gradient]

        if full and self.compile:
            return self.library.compiled(step, flat)
        return self.library.traced("step", step, flat)

    def evaluate(
        self, weights: torch.Tensor, buffers: dict[str, torch.Tensor], examples: Examples
    ) -> list[Evaluation]:
        """Evaluate each row of weights; see `FunctionalModel`."""
        if self.library is None:
            return self.functional_model.evaluate(weights, buffers, examples)
        sums = partial(self._kept_sums, self.library)
        return self.functional_model.evaluate(weights, buffers, examples, sums)

    def _kept_sums(
        self,
        library: StepLibrary,
        weights: torch.Tensor,
        buffers: dict[str, torch.Tensor],
        inputs: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Do the same as `FunctionalModel.batch_sums`, if possible from the library."""
        sums = self.functional_model.batch_sums
        flat, names = [weights, *buffers.values(), inputs, labels], list(buffers)

        def step(flat: list[torch.Tensor]) -> list[torch.Tensor]:
            weights, *values, inputs, labels = flat
            return [sums(weights, dict(zip(names, values)), inputs, labels)]

        return (library.traced("evaluation", step, flat) or step)(flat)[0]

    def has_guards(self, rows: int) -> bool:
        """Return whether the step checks the tensors' shapes, as those of `torch.compile` do."""
        return rows in self._compiled

    def _for_rows(self, rows: int) -> Step:
        if not self.compile:
            return self.eager
        if rows not in self._compiled:
            self._compiled[rows] = compiled(self._make_step(), self.device)
        return self._compiled[rows]

    def _make_step(self) -> Step:
        """Return a step as a function of tensors alone, as `torch.compile` requires."""
        gradients = self.functional_model.gradients
        update = self.stacked_optimizer.update if self.stacked_optimizer else None
        dropout_keys, parts, scales = self.dropout_keys, self.recipe.parts, self.parameter_scales
        augmentation_parts, data = self.recipe.augmentation_parts, self.data
        wide = accumulation_dtype(self.device)

        def step(
            weights: torch.Tensor,
            optimizer_state: dict[str, torch.Tensor],
            buffers: dict[str, torch.Tensor],
            totals: torch.Tensor,
            counter: torch.Tensor,
            inputs: torch.Tensor,
            labels: torch.Tensor,
            batches: torch.Tensor,
            coefficients: torch.Tensor,
            random_keys: torch.Tensor,
            augmentation_draws: torch.Tensor,
            class_weights: torch.Tensor,
        ) -> torch.Tensor | None:
            def current(table: torch.Tensor) -> torch.Tensor:
                # table[counter] would wait until the host knows the counter's value.
                return table.index_select(0, counter)[0]

            chosen = current(batches)
            buffers = {**buffers, **dict.fromkeys(dropout_keys, current(random_keys))}
            of_step = current(coefficients)
            of_optimizer = len(of_step) - len(parts)
            part = dict(zip(parts, of_step[of_optimizer:]))
            batch = data.scaling(inputs[chosen])
            if augmentation_parts:
                drawn = current(augmentation_draws)
                batch = augmented(batch, drawn, augmentation_parts, data)
            of_batch = labels[chosen]
            example_weights = None
            if "balance" in part:
                # In float64, as the last digits of a power depend on the place in the tensor.
                power = part["balance"].to(wide).unsqueeze(-1)
                example_weights = (class_weights.to(wide)[of_batch] ** power).float()
            gradient, loss, correct = gradients(
                weights, buffers, batch, of_batch, part.get("smoothing"), example_weights
            )
            if "clip" in part:
                gradient = clip_gradients(gradient, part["clip"])
            if update is not None:
                optimizer_coefficients = of_step[:of_optimizer].unsqueeze(-1)
                update(weights, gradient, optimizer_state, optimizer_coefficients, scales)
                if "average" in part:
                    update_ema(optimizer_state["ema"], weights, part["average"])
            # Last, so that a step that runs out of memory has not been counted.
            totals.add_(torch.stack([loss, correct]))
            counter.add_(1)
            return gradient if update is None else None

        return step
