"""The training step against plain PyTorch, and a stack against its trials alone."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from fmnist_sweep.engine import functional_model, step, training_jobs
from fmnist_sweep.engine.compiling import worth_compiling
from fmnist_sweep.engine.data import BYTES_TO_UNIT, DataSplits, epoch_permutation
from fmnist_sweep.engine.layers import KeyedDropout, with_stackable_layers
from fmnist_sweep.engine.stack import Progress
from fmnist_sweep.engine.training_jobs import TrainingJob
from fmnist_sweep.results.record import Epoch
from tests.conftest import mlp

BATCH = 32
pytestmark = pytest.mark.usefixtures("one_thread")


def trial(
    seed: int = 0,
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam,
    epochs: int = 2,
    dropout: float = 0.0,
    **arguments: Any,
) -> step.Trial:
    torch.manual_seed(seed)
    model = mlp(width=32, depth=2, hidden=None, dropout=dropout)
    return step.Trial(model, optimizer, {"lr": 0.003, **arguments}, seed, epochs)


def job(
    one: step.Trial,
    data: DataSplits,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_batches: Callable[[Progress], None] = lambda _: None,
    log_every: int = 1000,
) -> TrainingJob:
    return TrainingJob(one, data, BATCH, False, False, log_every, 1, on_epoch, on_batches)


def train(trials: Sequence[step.Trial], data: DataSplits) -> list[list[Epoch]]:
    """Trains trials together and returns each one's history, without its seconds."""
    histories: list[list[Epoch]] = [[] for _ in trials]
    jobs = [job(one, data, on_epoch=histories[index].append) for index, one in enumerate(trials)]
    training_jobs.train(jobs)
    return [[replace(row, seconds=0) for row in history] for history in histories]


def reference(one: step.Trial, data: DataSplits) -> tuple[nn.Module, list[float]]:
    """A plain float64 loop with PyTorch's own optimizer; the model and its training losses."""
    model = one.model.double()
    optimizer = one.optimizer(model.parameters(), **one.arguments)
    images, labels = BYTES_TO_UNIT(data.train.inputs).double(), data.train.labels
    losses = []
    for epoch in range(1, one.epochs + 1):
        total = 0.0
        for batch in epoch_permutation(one.seed, epoch, len(labels)).split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        losses.append(total / len(labels))
    return model, losses


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"betas": [0.8, 0.99], "eps": 1e-4, "weight_decay": 0.01}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.SGD, {"lr": 0.01}),
        (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.01}),
        (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
        (torch.optim.NAdam, {}),
        (torch.optim.RAdam, {}),  # no stacked counterpart: PyTorch's own class
        (torch.optim.Adam, {"amsgrad": True}),
    ],
)
def test_training_is_that_of_plain_pytorch(optimizer, arguments: dict, data: DataSplits) -> None:  # type: ignore[no-untyped-def, type-arg]
    expected, losses = reference(trial(3, optimizer, **arguments), data)
    ours = trial(3, optimizer, **arguments)
    (history,) = train([ours], data)
    assert [row.train_loss for row in history] == pytest.approx(losses, rel=1e-4)
    for mine, theirs in zip(ours.model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-3, atol=1e-4)


def test_batch_norm_and_frozen_layers_are_those_of_plain_pytorch(data: DataSplits) -> None:
    def one() -> step.Trial:
        torch.manual_seed(0)
        layers = nn.Linear(784, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)
        model = nn.Sequential(nn.Flatten(), *layers)
        model[1].requires_grad_(False)
        return step.Trial(model, torch.optim.Adam, {"lr": 0.003}, 0, 2)

    ours = one()
    frozen = ours.model[1].weight.clone()  # type: ignore[index]
    (history,) = train([ours], data)
    expected, losses = reference(one(), data)
    assert [row.train_loss for row in history] == pytest.approx(losses, rel=1e-4)
    assert torch.equal(ours.model[1].weight, frozen)  # type: ignore[index]
    state = ours.model.state_dict()
    for name, theirs in expected.state_dict().items():
        torch.testing.assert_close(state[name].double(), theirs.double(), rtol=1e-3, atol=1e-3)
    assert (
        functional_model.evaluate(ours.model, data.validation, BYTES_TO_UNIT)[1]
        == history[-1].val_accuracy
    )


def test_figures_are_those_of_the_trained_model(data: DataSplits) -> None:
    one = trial()
    (history,) = train([one], data)
    with torch.no_grad():
        logits = one.model(BYTES_TO_UNIT(data.validation.inputs))
    labels = data.validation.labels
    assert history[-1].val_accuracy == (logits.argmax(1) == labels).double().mean().item()
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert history[-1].val_loss == pytest.approx(loss, rel=1e-5)
    assert (
        functional_model.evaluate(one.model, data.validation, BYTES_TO_UNIT)[1]
        == history[-1].val_accuracy
    )


def test_a_trial_is_the_same_in_any_stack(data: DataSplits) -> None:
    def trials() -> list[step.Trial]:
        return [
            trial(seed, epochs=epochs, lr=lr, dropout=dropout)
            for seed, epochs, lr, dropout in [
                (0, 3, 0.001, 0.1),
                (1, 1, 0.01, 0.5),
                (2, 2, 1e30, 0.2),  # diverges
                (3, 3, 0.003, 0.3),
            ]
        ]

    together = train(trials(), data)
    for index, history in enumerate(together):
        (alone,) = train([trials()[index]], data)
        assert repr(alone) == repr(history)  # repr: NaN equals NaN
    assert [len(history) for history in together] == [3, 1, 2, 3]
    assert math.isnan(together[2][-1].train_loss)


def test_a_request_to_stop_ends_a_trial(data: DataSplits) -> None:
    seen: list[tuple[int, int]] = []
    jobs = [job(trial(0, epochs=3), data), job(trial(1, epochs=2), data)]

    def on_epoch(index: int, row: Epoch) -> None:
        seen.append((index, row.epoch))
        jobs[0].stop = True

    for index, one in enumerate(jobs):
        one.on_epoch = partial(on_epoch, index)
    training_jobs.train(jobs)
    assert seen == [(0, 1), (1, 1), (1, 2)]


def test_progress_is_a_running_mean(data: DataSplits) -> None:
    told: list[Progress] = []
    rows: list[Epoch] = []
    one = job(trial(epochs=1), data, rows.append, told.append, log_every=3)
    training_jobs.train([one])
    assert [at.batch for at in told] == [3, 6]
    assert told[0].loss > told[1].loss > rows[0].train_loss > 0


def test_a_foreign_optimizer_trains_beside_the_stack(data: DataSplits) -> None:
    def trials() -> list[step.Trial]:
        return [trial(0, torch.optim.RAdam), trial(1), trial(2, torch.optim.RAdam), trial(3)]

    for one, history in zip(trials(), train(trials(), data)):
        assert train([one], data) == [history]


def test_keyed_dropout_drops_its_share_and_keeps_the_mean() -> None:
    layer = KeyedDropout(0.3, layer=0)
    ones = torch.ones(1000, 1000)
    first = layer(ones)
    assert (first == 0).double().mean().item() == pytest.approx(0.3, abs=0.002)
    assert first.double().mean().item() == pytest.approx(1.0, abs=0.003)
    assert torch.equal(layer(ones), first)
    layer.key.fill_(123456789)
    second = layer(ones)
    both = ((first == 0) & (second == 0)).double().mean().item()
    assert both == pytest.approx(0.09, abs=0.002)  # independent from key to key
    assert torch.equal(layer.eval()(ones), ones)


def test_stackable_batch_norm_is_pytorchs() -> None:
    reference = nn.Sequential(nn.BatchNorm1d(7, eps=1e-4, momentum=0.3)).double()
    nn.init.uniform_(reference[0].weight)
    nn.init.uniform_(reference[0].bias)
    model = copy.deepcopy(reference)
    with_stackable_layers(model)
    assert type(model[0]) is not nn.BatchNorm1d
    for at in range(3):
        x = torch.randn(5 + at, 7, dtype=torch.float64)
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        (model(mine) ** 3).sum().backward()
        (reference(theirs) ** 3).sum().backward()
        torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(model[0].weight.grad, reference[0].weight.grad)
    torch.testing.assert_close(model.state_dict(), reference.state_dict())
    torch.testing.assert_close(model.eval()(x), reference.eval()(x))


@pytest.mark.parametrize(
    ("wish", "steps", "device", "expected"),
    [
        (False, 10**6, "cpu", False),
        (True, 1, "cpu", True),
        ("auto", 100, "cpu", False),
        ("auto", 10**6, "mps", False),
        ("auto", 15_630, "cuda", False),
        ("auto", 10**5, "cuda", True),
    ],
)
def test_when_steps_are_compiled(wish: Any, steps: int, device: str, expected: bool) -> None:
    decision, reason = worth_compiling(wish, steps, 10**5, torch.device(device))
    assert decision is expected
    assert reason.startswith("compiled" if expected else "eager")


def test_on_a_gpu_many_trials_repay_a_compilation_sooner() -> None:
    cuda = torch.device("cuda")
    assert not worth_compiling("auto", 15_630, 10**5, cuda, together=1)[0]
    assert worth_compiling("auto", 15_630, 10**5, cuda, together=256)[0]


def test_without_a_compiler_steps_are_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    decision, reason = worth_compiling("auto", 10**6, 10**5, torch.device("cpu"))
    assert not decision and "no C++ compiler" in reason
