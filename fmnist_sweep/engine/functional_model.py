"""A model without weights of its own: how a row of a stack's tensor is run as that model."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_map, tree_map_only

from fmnist_sweep.base.errors import first_line
from fmnist_sweep.engine.data import Images, normalise

EVALUATION_BATCH = 1000

Way = Literal["stacked", "single", "plain"]


class FunctionalModel:
    """A model without weights: how rows of a stack are taken apart and run.

    Args:
        way: "stacked", all rows at once with `torch.func.vmap`; with one row only: "single", with
            `torch.func.grad`, or "plain", with autograd, which runs anything.
        bf16: products in bfloat16, as `torch.autocast` has it; losses are float32 all the same.
    """

    def __init__(self, model: nn.Module, way: Way = "stacked", bf16: bool = False) -> None:
        self.model = model
        self.bf16 = bf16
        self.shapes = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        if way == "stacked":
            self._gradients = self._gradients_of_all
            self._figures: Callable[..., Any] = vmap(self._evaluate, (0, 0, 0, 0))
        else:
            single = way == "single"
            self._gradients = self._gradients_of_one if single else self._gradients_by_autograd
            self._figures = self._figures_of_one

    def flat(self, model: nn.Module) -> torch.Tensor:
        """A model's trainable parameters in one row [P]."""
        return torch.cat([model.get_parameter(name).detach().flatten() for name in self.shapes])

    def named(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows [..., P] as views [..., *shape] by parameter name."""
        parts = torch.split(rows, self.sizes, dim=-1)
        return {
            name: part.view(*rows.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts)
        }

    def gradients(
        self,
        rows: torch.Tensor,
        buffers: dict[str, torch.Tensor],
        images: torch.Tensor,
        labels: torch.Tensor,
        smoothing: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients [K, P] of the mean losses; summed losses and correct answers, each [K].

        Args:
            smoothing: label smoothing [K]; it changes the gradients, not the losses told.
        """
        self.model.train()
        inputs = self.named(rows), buffers, images, labels, smoothing
        by_name, (loss, correct) = self._gradients(*inputs)
        return torch.cat([g.flatten(1) for g in by_name.values()], dim=1), loss, correct

    @torch.no_grad()
    def evaluate(
        self, rows: torch.Tensor, buffers: dict[str, torch.Tensor], images: Images
    ) -> list[tuple[float, float]]:
        """Mean loss and accuracy of each row [K, P] on the images."""
        self.model.eval()
        totals = torch.zeros(2, len(rows), dtype=accurate(rows.device), device=rows.device)
        for start in range(0, len(images), EVALUATION_BATCH):
            pixels = normalise(images.pixels[start : start + EVALUATION_BATCH])
            labels = images.labels[start : start + EVALUATION_BATCH]
            # Expanded rather than shared: the products are then the same for every K.
            figures = self._figures(
                self.named(rows),
                buffers,
                pixels.expand(len(rows), *pixels.shape),
                labels.expand(len(rows), -1),
            )
            totals += torch.stack(figures)
        return [(loss, correct) for loss, correct in (totals / len(images)).T.tolist()]

    def _logits(self, weights: Any, buffers: Any, images: torch.Tensor) -> Any:
        if not self.bf16:
            return functional_call(self.model, (weights, buffers), (images,))
        # Casts are not cached: a cached one would be of another call's weights.
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            logits = functional_call(self.model, (weights, buffers), (images,))
        return logits.float()

    def _train_loss(
        self, weights: Any, buffers: Any, images: Any, labels: Any, smoothing: Any
    ) -> Any:
        logits = self._logits(weights, buffers, images)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        loss = losses.mean()
        if smoothing is not None:
            anything = -nn.functional.log_softmax(logits, dim=-1).mean()
            loss = loss + smoothing * (anything - loss)
        return loss, _sums(losses.detach(), logits, labels)

    def _evaluate(self, weights: Any, buffers: Any, images: Any, labels: Any) -> Any:
        logits = self._logits(weights, buffers, images)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return _sums(losses, logits, labels)

    def _gradients_of_all(self, *inputs: Any) -> Any:
        per_trial = tuple(None if each is None else 0 for each in inputs)
        # A model that draws random numbers itself would draw them with its neighbours.
        return vmap(grad(self._train_loss, has_aux=True), per_trial, randomness="error")(*inputs)

    def _gradients_of_one(self, *inputs: Any) -> Any:
        return _of_all(grad(self._train_loss, has_aux=True)(*map(_first, inputs)))

    def _gradients_by_autograd(self, weights: Any, *inputs: Any) -> Any:
        leaves = {name: row[0].detach().requires_grad_() for name, row in weights.items()}
        loss, sums = self._train_loss(leaves, *map(_first, inputs))
        gradients = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
        return _of_all((dict(zip(leaves, gradients)), [each.detach() for each in sums]))

    def _figures_of_one(self, *inputs: Any) -> Any:
        return _of_all(self._evaluate(*map(_first, inputs)))


def _first(rows: Any) -> Any:
    """The only row of tensors, by name or not; None stays None."""
    return tree_map_only(torch.Tensor, lambda tensor: tensor[0], rows)


def _of_all(one: Any) -> Any:
    """Tensors of one row as those of all rows."""
    return tree_map(lambda tensor: tensor.unsqueeze(0), one)


def _sums(
    losses: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of a batch's losses and the number of its correct answers.

    Summed in float64, where the order in which a compiled kernel adds float32 values up, which
    depends on K, does not show.
    """
    wide = accurate(losses.device)
    return losses.to(wide).sum(), (logits.argmax(-1) == labels).to(wide).sum()


def untrained(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a model needs beside its trainable parameters: buffers and frozen parameters."""
    frozen = {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}
    return {**dict(model.named_buffers()), **frozen}


def accurate(device: torch.device) -> torch.dtype:
    """The widest floating type of a device, for sums over many batches."""
    return torch.float32 if device.type == "mps" else torch.float64


@torch.no_grad()
def evaluate(model: nn.Module, images: Images) -> tuple[float, float]:
    """Mean loss and accuracy of one model on images of its own device."""
    skeleton = FunctionalModel(model, "plain")
    weights, buffers = _as_rows(skeleton, model)
    ((loss, accuracy),) = skeleton.evaluate(weights, buffers, images)
    return loss, accuracy


def _as_rows(skeleton: FunctionalModel, model: nn.Module) -> Any:
    beside = {name: tensor.unsqueeze(0) for name, tensor in untrained(model).items()}
    return skeleton.flat(model).unsqueeze(0), beside


def check(model: nn.Module) -> None:
    """Tries one step's gradients on two blank images, on the CPU; changes no weight.

    Raises:
        ValueError: the model does not return logits [2, 10], or has no gradients.
    """
    try:
        logits = model(torch.zeros(2, 1, 28, 28))
        if logits.shape != (2, 10):
            raise ValueError(f"returns {list(logits.shape)} for two images, not logits [2, 10]")
        _try_step(model, "plain")
    except (RuntimeError, TypeError, IndexError) as error:
        line = first_line(error)
        raise ValueError(f"cannot be trained: {line}") from None


def way(model: nn.Module, device: torch.device, bf16: bool) -> tuple[Way, str | None]:
    """How a model's steps are taken on a device, and why not stacked.

    Its layers must have been made stackable. A model that branches on a value cannot be run by
    `torch.func`, one that draws random numbers itself not with others. Convolutions with weights
    of their own become grouped ones, which a CPU does more slowly than one trial after the other
    (4.2 ms a step alone, 6.5 in fours, 9.1 in eights).
    """
    ways: list[Way] = ["stacked"]
    reason = None
    if any(isinstance(m, nn.modules.conv._ConvNd) for m in model.modules()):
        ways.append("single")  # vmap has no batch norm of bfloat16 images
        if device.type == "cpu":
            ways, reason = ["single"], "a CPU convolves one trial's images fastest"
    for each in ways:
        try:
            _try_step(model, each, bf16)
        except Exception as error:
            reason = first_line(error)
        else:
            return each, reason
    return "plain", reason


def _try_step(model: nn.Module, way: Way, bf16: bool = False) -> None:
    images, labels = torch.zeros(1, 2, 1, 28, 28), torch.zeros(1, 2, dtype=torch.int64)
    skeleton = FunctionalModel(model, way, bf16)
    rows, beside = _as_rows(skeleton, model)
    copies = {name: tensor.clone() for name, tensor in beside.items()}
    skeleton.gradients(rows, copies, images, labels)
