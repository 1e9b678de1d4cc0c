"""A model without weights of its own: how a row of a stack's tensor is run as that model."""

import math
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from fmnist_sweep.data.batches import Images, normalise

EVALUATION_BATCH = 1000


class Skeleton:
    """A model without weights: how rows of a stack are taken apart and run."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.shapes = {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        per_trial = (0, 0, 0, 0)
        self._gradients = vmap(
            grad(self._train_loss, has_aux=True), per_trial, randomness="different"
        )
        self._figures = vmap(self._evaluate, per_trial)

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
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients [K, P] of the mean losses; summed losses and correct answers, each [K]."""
        self.model.train()
        by_name, (loss, correct) = self._gradients(self.named(rows), buffers, images, labels)
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

    def _train_loss(self, weights: Any, buffers: Any, images: Any, labels: Any) -> Any:
        logits = functional_call(self.model, (weights, buffers), (images,))
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return losses.mean(), _sums(losses.detach(), logits, labels)

    def _evaluate(self, weights: Any, buffers: Any, images: Any, labels: Any) -> Any:
        logits = functional_call(self.model, (weights, buffers), (images,))
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return _sums(losses, logits, labels)


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
    skeleton = Skeleton(model)
    weights = skeleton.flat(model).unsqueeze(0)
    buffers = {name: tensor.unsqueeze(0) for name, tensor in untrained(model).items()}
    ((loss, accuracy),) = skeleton.evaluate(weights, buffers, images)
    return loss, accuracy


def probe(model: nn.Module) -> None:
    """Tries one step's gradients on two blank images, on the CPU; changes no weight.

    Raises:
        ValueError: the model does not return logits [2, 10], or `torch.func` cannot run it.
    """
    images, labels = torch.zeros(1, 2, 1, 28, 28), torch.zeros(1, 2, dtype=torch.int64)
    skeleton = Skeleton(model)
    buffers = {name: tensor.unsqueeze(0) for name, tensor in untrained(model).items()}
    try:
        logits = model(images[0])
        if logits.shape != (2, 10):
            raise ValueError(f"returns {list(logits.shape)} for two images, not logits [2, 10]")
        skeleton.gradients(skeleton.flat(model).unsqueeze(0), buffers, images, labels)
    except (RuntimeError, TypeError) as error:
        line = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot be trained under torch.func.vmap: {line}") from None
