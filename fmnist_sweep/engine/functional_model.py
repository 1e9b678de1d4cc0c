"""A model as a function of its weights, applied to the rows of a chunk's weight tensor."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map, tree_map_only

from fmnist_sweep.base.errors import first_line
from fmnist_sweep.engine.data import UNSCALED, DataFormat, Examples, Scaling
from fmnist_sweep.models.mlp import MLP

EVALUATION_BATCH = 1000


class Evaluation(NamedTuple):
    """A model's figures on examples.

    loss: mean cross-entropy in nats.
    accuracy: share of correct predictions.
    balanced_accuracy: mean over classes of the share of its examples that are recognised.
    macro_f1: mean over classes of F1, the harmonic mean of precision and recall.

    As in scikit-learn, classes without examples do not count towards the balanced accuracy, and
    those that are neither present nor predicted do not count towards macro F1.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    macro_f1: float


ExecutionMode = Literal["stacked", "single", "plain"]
BatchSums = Callable[
    [torch.Tensor, dict[str, torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor
]


class FunctionalModel:
    """A model as a function of K rows of weights [K, P] and of K rows of each buffer.

    Args:
        model: the model; its own weights are not used.
        execution_mode: "stacked" runs all rows at once with `torch.func.vmap`. The other modes take
            one row: "single" uses `torch.func.grad`; "plain" uses autograd, which runs any model.
        bf16: compute under `torch.autocast` in bfloat16; losses remain float32.
        scaling: of the examples that `evaluate` and `batch_sums` take.
    """

    def __init__(
        self,
        model: nn.Module,
        execution_mode: ExecutionMode = "stacked",
        bf16: bool = False,
        scaling: Scaling = UNSCALED,
    ) -> None:
        self.model = model
        self.scaling = scaling
        self.bf16 = bf16
        self.shapes = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        if execution_mode == "stacked":
            self._gradients = self._stacked_gradients
            self._evaluate_rows: Callable[..., Any] = vmap(self._evaluate, (0, 0, 0, 0))
        else:
            single = execution_mode == "single"
            self._gradients = self._single_gradients if single else self._plain_gradients
            self._evaluate_rows = self._evaluate_single

    def flatten(self, model: nn.Module) -> torch.Tensor:
        """Return a model's trainable parameters as one row [P]."""
        return torch.cat([model.get_parameter(name).detach().flatten() for name in self.shapes])

    def unflatten(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return rows [..., P] as views [..., *shape] by parameter name."""
        parts = torch.split(rows, self.sizes, dim=-1)
        return {
            name: part.view(*rows.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts)
        }

    def gradients(
        self,
        rows: torch.Tensor,
        buffers: dict[str, torch.Tensor],
        inputs: torch.Tensor,
        labels: torch.Tensor,
        smoothing: torch.Tensor | None = None,
        example_weights: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the gradients of a batch and update the buffers in place.

        Args:
            rows: weights, float32 [K, P].
            buffers: what `buffers_and_frozen` returns, with a leading dimension K.
            inputs: float32 [K, batch, *shape], scaled.
            labels: int64 [K, batch].
            smoothing: label smoothing [K].
            example_weights: weights of the examples in the mean loss: float32 [K, batch]. Neither
                this nor `smoothing` changes the returned losses.

        Returns:
            The gradients of the mean losses [K, P], the summed losses [K] and the numbers of
            correct predictions [K].
        """
        self.model.train()
        arguments = self.unflatten(rows), buffers, inputs, labels, smoothing, example_weights
        by_name, (loss, correct) = self._gradients(*arguments)
        return torch.cat([g.flatten(1) for g in by_name.values()], dim=1), loss, correct

    @torch.no_grad()
    def evaluate(
        self,
        rows: torch.Tensor,
        buffers: dict[str, torch.Tensor],
        examples: Examples,
        batch_sums: BatchSums | None = None,
    ) -> list[Evaluation]:
        """Evaluate each row of weights [K, P] on the examples.

        Args:
            rows: the weights.
            buffers: what `buffers_and_frozen` returns, with a leading dimension K.
            examples: the examples.
            batch_sums: a replacement for `self.batch_sums`.
        """
        sums = batch_sums or self.batch_sums
        totals: torch.Tensor | float = 0.0
        for start in range(0, len(examples), EVALUATION_BATCH):
            inputs, labels = examples.slice(start, start + EVALUATION_BATCH)
            totals = totals + sums(rows, buffers, inputs.to(rows.device), labels.to(rows.device))
        assert isinstance(totals, torch.Tensor)
        return _evaluations(totals.T.cpu(), examples.own_labels.cpu())

    def batch_sums(
        self,
        rows: torch.Tensor,
        buffers: dict[str, torch.Tensor],
        inputs: torch.Tensor,
        labels: torch.Tensor,
    ) -> torch.Tensor:
        """Return the sums over a batch for each row: [2 + 2 * classes, K].

        They are the losses, the correct predictions, the correct predictions of each class, and how
        often each class was predicted.

        Args:
            rows, buffers: as in `evaluate`.
            inputs, labels: examples as they are stored: uint8 or float32 [n, *shape], int64 [n].
        """
        self.model.eval()
        scaled = self.scaling(inputs)
        # Expanded rather than shared: the matrix products are then the same for every K.
        sums = self._evaluate_rows(
            self.unflatten(rows),
            buffers,
            scaled.expand(len(rows), *scaled.shape),
            labels.expand(len(rows), -1),
        )
        return torch.cat([one.view(len(rows), -1) for one in sums], dim=1).T

    def _logits(self, weights: Any, buffers: Any, images: torch.Tensor) -> Any:
        if not self.bf16:
            return functional_call(self.model, (weights, buffers), (images,))
        # Autocast's cache could hold casts of another call's weights.
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            logits = functional_call(self.model, (weights, buffers), (images,))
        return logits.float()

    def _train_loss(
        self,
        weights: Any,
        buffers: Any,
        images: Any,
        labels: Any,
        smoothing: Any,
        example_weights: Any,
    ) -> Any:
        logits = self._logits(weights, buffers, images)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        loss = _mean(losses, example_weights)
        if smoothing is not None:
            uniform_loss = -_mean(nn.functional.log_softmax(logits, dim=-1), example_weights)
            loss = loss + smoothing * (uniform_loss - loss)
        return loss, _loss_and_correct(losses.detach(), logits, labels)

    def _evaluate(self, weights: Any, buffers: Any, images: Any, labels: Any) -> Any:
        logits = self._logits(weights, buffers, images)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        loss, correct = _loss_and_correct(losses, logits, labels)
        predicted = logits.argmax(-1, keepdim=True)
        as_predicted = predicted == torch.arange(logits.shape[-1], device=logits.device)
        hits = as_predicted & (predicted == labels.unsqueeze(-1))
        return loss, correct, hits.sum(0).to(loss.dtype), as_predicted.sum(0).to(loss.dtype)

    def _stacked_gradients(self, *inputs: Any) -> Any:
        in_dims = tuple(None if each is None else 0 for each in inputs)
        # The random numbers of a model that draws them itself would depend on the other rows.
        return vmap(grad(self._train_loss, has_aux=True), in_dims, randomness="error")(*inputs)

    def _single_gradients(self, *inputs: Any) -> Any:
        return _add_row_dim(grad(self._train_loss, has_aux=True)(*map(_only_row, inputs)))

    def _plain_gradients(self, weights: Any, *inputs: Any) -> Any:
        leaves = {name: row[0].detach().requires_grad_() for name, row in weights.items()}
        loss, sums = self._train_loss(leaves, *map(_only_row, inputs))
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return _add_row_dim((dict(zip(leaves, gradients)), [each.detach() for each in sums]))

    def _evaluate_single(self, *inputs: Any) -> Any:
        return _add_row_dim(self._evaluate(*map(_only_row, inputs)))


def _evaluations(totals: torch.Tensor, labels: torch.Tensor) -> list[Evaluation]:
    """Return the evaluation of each row.

    Args:
        totals: what `batch_sums` returns, summed over all batches and transposed.
        labels: the labels of the examples.
    """
    classes = (totals.shape[1] - 2) // 2
    means = totals[:, :2] / len(labels)
    hits, predicted = totals[:, 2 : 2 + classes], totals[:, 2 + classes :]
    actual = torch.bincount(labels, minlength=classes).to(totals.dtype)
    recall = (hits / actual)[:, actual > 0].mean(1)
    f1 = (2 * hits / (actual + predicted)).nanmean(1)
    columns = (*means.T, recall, f1)
    return [Evaluation(*row) for row in zip(*(column.tolist() for column in columns))]


def _mean(losses: torch.Tensor, example_weights: torch.Tensor | None) -> torch.Tensor:
    """Return the mean of losses [batch, ...], each example with its weight [batch]."""
    if example_weights is None:
        return losses.mean()
    of_examples = losses.flatten(1).mean(1) if losses.dim() > 1 else losses
    return (of_examples * example_weights).sum() / example_weights.sum()


def _only_row(tree: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor[0], tree)


def _add_row_dim(tree: Any) -> Any:
    return tree_map(lambda tensor: tensor.unsqueeze(0), tree)


def _loss_and_correct(
    losses: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sum of a batch's losses and the number of its correct predictions.

    The order in which a compiled kernel adds up float32 values depends on K. In float64 the order
    does not show in the result.
    """
    dtype = accumulation_dtype(losses.device)
    return losses.to(dtype).sum(), (logits.argmax(-1) == labels).to(dtype).sum()


def buffers_and_frozen(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's buffers and frozen parameters by name."""
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    return {**dict(model.named_buffers()), **frozen}


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floating-point type of a device, for sums over many batches."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def evaluate(model: nn.Module, examples: Examples, scaling: Scaling) -> Evaluation:
    """Evaluate a model on examples on the model's device."""
    functional = FunctionalModel(model, "plain", scaling=scaling)
    weights, buffers = _as_rows(functional, model)
    (found,) = functional.evaluate(weights, buffers, examples)
    return found


def _as_rows(functional: FunctionalModel, model: nn.Module) -> Any:
    buffers = {name: tensor.unsqueeze(0) for name, tensor in buffers_and_frozen(model).items()}
    return functional.flatten(model).unsqueeze(0), buffers


def check(model: nn.Module, data: DataFormat) -> None:
    """Check that a model can be trained, with a step's gradients of two blank examples on the CPU.

    No weight changes.

    Raises:
        ValueError: the model does not return logits [2, classes], or its gradients cannot be
            computed.
    """
    try:
        logits = model(torch.zeros(2, *data.shape))
        if logits.shape != (2, data.classes):
            examples = "images" if data.is_image else "examples"
            raise ValueError(
                f"returns {list(logits.shape)} for two {examples}, not logits [2, {data.classes}]"
            )
        _try_step(model, data.shape, "plain")
    except (RuntimeError, TypeError, IndexError) as error:
        line = first_line(error)
        raise ValueError(f"cannot be trained: {line}") from None


def choose_execution_mode(
    model: nn.Module, shape: Sequence[int], device: torch.device, bf16: bool
) -> tuple[ExecutionMode, str | None]:
    """Choose the fastest execution mode in which a model runs.

    `torch.func` cannot run a model that branches on a tensor's value, and a model that draws random
    numbers itself cannot be stacked. Convolutions whose weights differ from row to row become
    grouped convolutions. On a CPU these are slower than one trial after the other (4.2 ms per step
    and trial alone, 6.5 in stacks of 4, 9.1 in stacks of 8).

    Args:
        model: a model whose layers have been replaced by `with_stackable_layers`.
        shape: the shape of an example.
        device: the device of the training.
        bf16: see `FunctionalModel`.

    Returns:
        The mode, and the reason if the mode is not "stacked".
    """
    if type(model) is MLP:
        # Known without a trial step, which imports PyTorch's compiler in more than a second.
        return "stacked", None
    candidates: list[ExecutionMode] = ["stacked"]
    reason = None
    if any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules()):
        candidates.append("single")  # vmap cannot run batch norm on bfloat16 images
        if device.type == "cpu":
            candidates, reason = ["single"], "a CPU convolves one trial's images fastest"
    for candidate in candidates:
        try:
            _try_step(model, shape, candidate, bf16)
        except Exception as error:
            reason = first_line(error)
        else:
            return candidate, reason
    return "plain", reason


def _try_step(
    model: nn.Module, shape: Sequence[int], execution_mode: ExecutionMode, bf16: bool = False
) -> None:
    inputs, labels = torch.zeros(1, 2, *shape), torch.zeros(1, 2, dtype=torch.int64)
    functional = FunctionalModel(model, execution_mode, bf16)
    rows, buffers = _as_rows(functional, model)
    copies = {name: tensor.clone() for name, tensor in buffers.items()}
    functional.gradients(rows, copies, inputs, labels)
