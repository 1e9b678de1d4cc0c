"""Schedules and the other parts of a recipe against PyTorch's own, in float64."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel

from fmnist_sweep.engine import step
from fmnist_sweep.engine.data import BYTES_TO_UNIT, DataSplits, epoch_permutation
from fmnist_sweep.engine.early_stopping import EarlyStopping
from fmnist_sweep.engine.recipe import Recipe
from fmnist_sweep.engine.schedules import Schedule
from fmnist_sweep.engine.settings import EarlyStoppingConfig, SchedulerConfig, parse_scheduler
from fmnist_sweep.results.record import Epoch
from tests.test_engine import BATCH, train, trial

EPOCHS, BATCHES = 6, 7
TOTAL = EPOCHS * BATCHES

SCHEDULES: dict[str, tuple[dict[str, Any], Callable[[torch.optim.Optimizer], Any]]] = {
    "constant": ({}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    "cosine": (
        {"per": "step", "final": 0.1},
        lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL, eta_min=0.1),
    ),
    "warmup_cosine": (
        {"per": "step", "warmup_epochs": 2.0, "start": 0.2, "final": 0.0},
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, 0.2, total_iters=2 * BATCHES),
                lr_scheduler.CosineAnnealingLR(o, TOTAL - 2 * BATCHES),
            ],
            [2 * BATCHES],
        ),
    ),
    "onecycle": (
        {"per": "step", "warmup_share": 0.3, "start": 0.04, "final": 4e-6},
        lambda o: lr_scheduler.OneCycleLR(o, 1.0, TOTAL),
    ),
    "step": (
        {"every": 2, "factor": 0.3},
        lambda o: lr_scheduler.StepLR(o, 2 * BATCHES, gamma=0.3),
    ),
}


def scheduler(kind: str, **numbers: Any) -> SchedulerConfig:
    return parse_scheduler({"kind": kind, **numbers})


@pytest.mark.filterwarnings("ignore:.*optimizer.step:UserWarning")
@pytest.mark.filterwarnings("ignore:.*epoch parameter in `scheduler.step:UserWarning")
@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedules_are_those_of_pytorch(kind: str) -> None:
    numbers, theirs = SCHEDULES[kind]
    ours = Schedule(scheduler(kind, **numbers), EPOCHS, BATCHES)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = theirs(optimizer)
    expected = []
    for _ in range(TOTAL):
        expected.append(optimizer.param_groups[0]["lr"])
        if len(expected) < TOTAL:
            reference.step()
    found = np.concatenate([ours.factors(epoch) for epoch in range(1, EPOCHS + 1)])
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["cosine", "warmup_cosine", "onecycle"])
def test_a_schedule_per_epoch_holds_still_within_one(kind: str) -> None:
    numbers = {**SCHEDULES[kind][0], "per": "epoch"}
    ours = Schedule(scheduler(kind, **numbers), EPOCHS, BATCHES)
    each = [set(ours.factors(epoch)) for epoch in range(1, EPOCHS + 1)]
    assert all(len(factors) == 1 for factors in each)
    assert len(set.union(*each)) > 3


def epoch(number: int, loss: float) -> Epoch:
    return Epoch(number, 0.1, loss, 0.5, loss, 0.5, 1.0)


def test_plateau_follows_its_metric() -> None:
    numbers = {"metric": "val_loss", "factor": 0.5, "patience": 1, "min_change": 0.1, "final": 0.2}
    schedule = Schedule(scheduler("plateau", **numbers), EPOCHS, BATCHES)
    factors = []
    for number, loss in enumerate([1.0, 0.5, 0.45, 0.44, 0.43, 0.42, 0.41, 0.40], start=1):
        factors.append(float(schedule.factors(number)[-1]))
        schedule.epoch_ended(epoch(number, loss))
    assert factors == [1, 1, 1, 1, 0.5, 0.5, 0.25, 0.25]


def test_early_stopping_waits_for_its_patience() -> None:
    config = EarlyStoppingConfig(patience=2, min_change=0.1, metric="val_loss")
    stopping = EarlyStopping(config)
    taken = [(1, 1.0), (2, 0.8), (3, 0.75), (4, 0.6), (5, float("nan")), (6, 0.59)]
    assert [stopping.take(epoch(*row)) for row in taken] == [True, True, False, True, False, False]
    assert stopping.exhausted and stopping.best == epoch(4, 0.6)


def reference(one: step.Trial, data: DataSplits) -> nn.Module:
    """A plain float64 loop with PyTorch's own parts; the model that it keeps."""
    recipe, model = one.recipe, one.model.double()
    decay = one.arguments.get("weight_decay", 0.0)
    groups = [
        {
            "params": [parameter],
            "weight_decay": decay if recipe.decay_all or parameter.ndim > 1 else 0.0,
        }
        for parameter in model.parameters()
    ]
    optimizer = one.optimizer(groups, **one.arguments)
    images, labels = BYTES_TO_UNIT(data.train.inputs).double(), data.train.labels
    batches = -(-len(labels) // BATCH)
    schedule = Schedule(recipe.scheduler, one.epochs, batches)
    decay_of = lambda t: min(recipe.average or 0, (1 + t) / (10 + t))  # noqa: E731
    averaged = AveragedModel(
        model, avg_fn=lambda mean, new, seen: mean + (new - mean) * (1 - decay_of(int(seen)))
    )
    averaged.update_parameters(model)  # begins as a copy
    loss_of = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    for number in range(1, one.epochs + 1):
        factors = schedule.factors(number)
        for factor, batch in zip(
            factors, epoch_permutation(one.seed, number, len(labels)).split(BATCH)
        ):
            for group in optimizer.param_groups:
                group["lr"] = one.arguments["lr"] * factor
            optimizer.zero_grad()
            loss_of(model(images[batch]), labels[batch]).backward()
            if recipe.clip_norm:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            averaged.update_parameters(model)
    return averaged.module if recipe.average else model


COSINE = scheduler("cosine", per="step", final=0.1)
ONECYCLE = scheduler("onecycle", **SCHEDULES["onecycle"][0])


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(COSINE),
        Recipe(label_smoothing=0.2),
        Recipe(clip_norm=0.5),
        Recipe(average=0.8),
        Recipe(decay_all=False),
        Recipe(ONECYCLE, 0.1, 0.7, 0.9, decay_all=False),
    ],
)
@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (torch.optim.AdamW, {"weight_decay": 0.3}),
        (torch.optim.Adam, {"weight_decay": 0.01}),
        (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.03}),
        (torch.optim.NAdam, {"weight_decay": 0.01}),
        (torch.optim.RMSprop, {"lr": 0.001, "momentum": 0.5, "weight_decay": 0.01}),
        (torch.optim.Adagrad, {"lr": 0.01, "weight_decay": 0.01}),  # PyTorch's own class
    ],
)
def test_a_recipe_is_that_of_plain_pytorch(  # type: ignore[no-untyped-def]
    optimizer,
    arguments: dict,  # type: ignore[type-arg]
    recipe: Recipe,
    data: DataSplits,
) -> None:
    def one() -> step.Trial:
        made = trial(3, optimizer, **arguments)
        made.recipe = recipe
        return made

    expected, ours = reference(one(), data), one()
    train([ours], data)
    for mine, theirs in zip(ours.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=2e-4)


def newton_schulz(
    gradient: Tensor, factors: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Muon's own, in float64: in bfloat16 a last digit of a gradient becomes a visible step."""
    x = gradient.double().T if gradient.shape[0] > gradient.shape[1] else gradient.double()
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = factors[0] * x + (factors[1] * gram + factors[2] * gram @ gram) @ x
    return (x.T if gradient.shape[0] > gradient.shape[1] else x).float()


def test_muon_steps_hidden_matrices_and_adamw_the_rest(
    data: DataSplits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        sys.modules["torch.optim._muon"], "_zeropower_via_newtonschulz", newton_schulz
    )
    arguments = {"lr": 0.002, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.1}
    ours, theirs = trial(3, torch.optim.Muon, **arguments), trial(3)
    hidden = [theirs.model[1].weight, theirs.model[3].weight]  # type: ignore[index]
    others = [p for p in theirs.model.parameters() if all(p is not h for h in hidden)]
    optimizers = [
        torch.optim.Muon(hidden, **arguments),
        torch.optim.AdamW(others, lr=0.002, weight_decay=0.1),
    ]
    images, labels = BYTES_TO_UNIT(data.train.inputs), data.train.labels
    for number in (1, 2):
        for batch in epoch_permutation(3, number, len(labels)).split(BATCH):
            theirs.model.zero_grad()
            nn.functional.cross_entropy(theirs.model(images[batch]), labels[batch]).backward()
            for optimizer in optimizers:
                optimizer.step()
    train([ours], data)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-4)


def test_early_stopping_keeps_the_best_epochs_weights(data: DataSplits) -> None:
    def one(epochs: int, **recipe: Any) -> step.Trial:
        made = trial(3, epochs=epochs, lr=0.01)
        made.recipe = Recipe(**recipe)
        return made

    stopping = EarlyStoppingConfig(patience=9, min_change=0.0, metric="val_loss")
    stopped = one(9, early_stopping=stopping)
    (history,) = train([stopped], data)
    best = min(history, key=lambda row: row.val_loss)
    assert 1 < best.epoch < 9
    short = one(best.epoch)
    train([short], data)
    for mine, other in zip(stopped.model.parameters(), short.model.parameters(), strict=True):
        assert torch.equal(mine, other)
