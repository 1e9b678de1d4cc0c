"""Stacks: the same numbers as alone in any company, and every trial in exactly one of them."""

import itertools
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fmnist_sweep.base.errors import ProcessDied
from fmnist_sweep.engine import optimizers, stack, training_jobs
from fmnist_sweep.engine.checkpoint import Checkpoint, State
from fmnist_sweep.engine.chunk import Chunk
from fmnist_sweep.engine.compiling import worth_compiling
from fmnist_sweep.engine.data import DataSplits, Examples
from fmnist_sweep.engine.recipe import Recipe
from fmnist_sweep.engine.settings import (
    AugmentConfig,
    CosineConfig,
    EarlyStoppingConfig,
    PlateauConfig,
)
from fmnist_sweep.engine.stack import Outcome, Progress, StackKey
from fmnist_sweep.engine.step import Trial, TrialState
from fmnist_sweep.engine.training_jobs import JobScheduler, TrainingJob
from fmnist_sweep.engine.workers import ProcessWorker, Worker
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.task.data.fashion import FORMAT
from tests.conftest import mlp

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Case:
    """A trial as a test describes it; `stop_after` is what a pruner would say."""

    seed: int = 0
    epochs: int = 2
    width: int = 32
    batch: int = 32
    optimizer: type[torch.optim.Optimizer] = torch.optim.Adam
    lr: float = 0.003
    dropout: float = 0.0
    stop_after: int | None = None
    arguments: tuple[tuple[str, Any], ...] = ()
    recipe: Recipe = field(default_factory=Recipe)
    batch_norm: bool = False

    def job(
        self, data: DataSplits, history: list[Epoch], compile: bool = False, bf16: bool = False
    ) -> TrainingJob:
        torch.manual_seed(self.seed)
        model = mlp(self.width, 2, None, self.dropout, self.batch_norm)
        arguments = {"lr": self.lr, **dict(self.arguments)}
        trial = Trial(model, self.optimizer, arguments, self.seed, self.epochs, self.recipe)

        def on_epoch(row: Epoch) -> None:
            history.append(replace(row, seconds=0))
            job.stop = row.epoch == self.stop_after

        ignore: Callable[[Progress], None] = lambda _: None  # noqa: E731
        job = TrainingJob(trial, data, self.batch, compile, bf16, 5, 1, on_epoch, ignore)
        return job


def train(
    cases: Sequence[Case],
    data: DataSplits,
    make_worker: Callable[[], Worker] = Worker,
    workers: int = 1,
    max_stack: int = 8,
    **how: bool,
) -> tuple[list[list[Epoch]], list[TrainingJob]]:
    histories: list[list[Epoch]] = [[] for _ in cases]
    jobs = [case.job(data, history, **how) for case, history in zip(cases, histories)]
    with JobScheduler(make_worker, workers, max_stack) as scheduler:
        for job in jobs:
            scheduler.add(job)
        while not all(job.ended for job in jobs):
            scheduler.step()
    return histories, jobs


def check_same_as_alone(
    cases: Sequence[Case],
    histories: list[list[Epoch]],
    jobs: list[TrainingJob],
    data: DataSplits,
    **how: bool,
) -> None:
    for case, history, job in zip(cases, histories, jobs):
        (alone,), (itself,) = train([case], data, **how)
        assert repr(history) == repr(alone)  # repr: NaN equals NaN
        for mine, theirs in zip(
            job.trial.model.state_dict().values(), itself.trial.model.state_dict().values()
        ):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)


SGD = torch.optim.SGD
EARLY = EarlyStoppingConfig(patience=1, min_change=0.05, metric="val_loss")
COSINE = CosineConfig(kind="cosine", per="step", final=0.0)
PLATEAU = PlateauConfig(
    kind="plateau", metric="val_loss", factor=0.1, patience=0, min_change=0.5, final=0.0
)


def changed(**settings: Any) -> Recipe:
    """A recipe of augmentation alone."""
    none = {"flip": 0.0, "rotate": 0.0, "shift": 0, "crop": 1.0, "erase": 0.0, "erase_size": 0.5}
    return Recipe(augment=AugmentConfig.model_validate({**none, **settings}))


RECIPES = [
    Case(1, 3, recipe=Recipe(COSINE)),
    *(Case(seed, recipe=Recipe(class_balance=0.3 + seed / 7)) for seed in range(3)),
    Case(2, 4, recipe=Recipe(PLATEAU)),
    *(Case(s, 3, recipe=Recipe(COSINE, 0.1 * s, 0.5 * s, 1 - 0.1 * s, EARLY)) for s in (1, 2, 3)),
    *(Case(s, recipe=Recipe(label_smoothing=0.1 * s)) for s in (1, 2)),
    *(Case(s, recipe=Recipe(clip_norm=0.1 * s)) for s in (1, 2)),
    *(Case(s, 2, optimizer=SGD, recipe=Recipe(average=0.5 + 0.1 * s)) for s in (1, 2)),
    *(
        Case(s, optimizer=torch.optim.AdamW, recipe=Recipe(decay_all=False, average=0.9))
        for s in (1, 2)
    ),
    *(Case(s, recipe=changed(flip=0.3 * s, shift=s)) for s in (1, 2)),
    *(Case(s, recipe=changed(rotate=10.0 * s, crop=1 - 0.1 * s)) for s in (1, 2)),
    *(Case(s, recipe=changed(erase=0.3 * s)) for s in (1, 2)),
    *(Case(s, recipe=changed(flip=0.5, rotate=5.0, shift=s, erase=0.5)) for s in (1, 2)),
    *(Case(s, batch_norm=True) for s in (1, 2, 3)),
]
MOMENTUM = (("momentum", 0.9), ("nesterov", True))
MIXED = [
    *(Case(seed, 1 + seed % 3, lr=0.001 * (1 + seed)) for seed in range(9)),
    *(Case(seed, width=64, batch=16, lr=0.002) for seed in range(3)),
    *(Case(seed, optimizer=SGD, lr=0.01, arguments=MOMENTUM) for seed in range(2)),
    Case(4, optimizer=SGD, lr=0.02, arguments=(("weight_decay", 0.01),)),
    *(Case(seed, 3, dropout=0.1 * (1 + seed), stop_after=1 + seed % 2) for seed in range(5)),
    Case(1, 3, lr=1e30),  # diverges
    *(Case(seed, optimizer=torch.optim.NAdam, lr=0.002 * (1 + seed)) for seed in range(2)),
    *(Case(seed, optimizer=torch.optim.RMSprop, lr=0.001 * (1 + seed)) for seed in range(2)),
    Case(2, 2, optimizer=torch.optim.Adagrad),  # has no stacked optimizer
    Case(2, 2, optimizer=torch.optim.Muon),  # neither
    *RECIPES,
    Case(3, 2, optimizer=torch.optim.AdamW, arguments=(("weight_decay", 0.1),)),
]


def _torture(*values: Any) -> Any:
    """Parameters that are tried by `make torture` alone."""
    return pytest.param(*values, marks=pytest.mark.torture)


@pytest.mark.parametrize("max_stack", [3, 16, *(_torture(n) for n in (1, 2, 8))])
def test_a_trial_is_the_same_in_any_company(max_stack: int, data: DataSplits) -> None:
    histories, jobs = train(MIXED, data, max_stack=max_stack)
    check_same_as_alone(MIXED, histories, jobs, data)
    assert [len(history) for history in histories] == [
        case.stop_after or case.epochs for case in MIXED
    ]


@pytest.mark.parametrize(
    ("width", "batch"),
    [
        *((48, 16), (128, 7), (320, 128)),
        *(_torture(48, batch) for batch in (7, 128)),
        *(_torture(128, batch) for batch in (16, 128)),
        *(_torture(320, batch) for batch in (7, 16)),
    ],
)
def test_shapes(width: int, batch: int, data: DataSplits) -> None:
    cases = [Case(seed, 2, width, batch, dropout=0.2) for seed in range(7)]
    check_same_as_alone(cases, *train(cases, data), data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "batch", "dropout", "optimizer"),
    [
        (128, 32, 0.3, torch.optim.Adam),
        pytest.param(64, 16, 0.0, torch.optim.Adam, marks=pytest.mark.torture),
        pytest.param(72, 64, 0.0, SGD, marks=pytest.mark.torture),
    ],
)
def test_compiled_steps(
    width: int, batch: int, dropout: float, optimizer: Any, data: DataSplits
) -> None:
    if not worth_compiling("auto", 10**6, 10**5, torch.device("cpu"))[0]:
        pytest.skip("no C++ compiler here")
    cases = [
        Case(
            seed,
            2 + seed % 2,
            width,
            batch,
            optimizer,
            0.001 * (seed + 1),
            dropout and 0.1 + dropout * seed / 11,
        )
        for seed in range(2)
    ]
    cases[1] = replace(cases[1], lr=1e30)
    histories, jobs = train(cases, data, max_stack=2, compile=True)
    for index in (0, 1):
        check_same_as_alone([cases[index]], [histories[index]], [jobs[index]], data, compile=True)
    (eager,), _ = train(cases[:1], data)
    assert [row.train_accuracy for row in histories[0]] == [row.train_accuracy for row in eager]
    assert histories[0][-1].val_loss == pytest.approx(eager[-1].val_loss, rel=1e-5)


def check_bf16(data: DataSplits) -> None:
    cases = [Case(seed, 3, batch_norm=seed > 1) for seed in range(4)]
    (low, _), (full, _) = train(cases, data, bf16=True), train(cases, data)
    for ours, theirs in zip(low, full):
        assert ours != theirs
        assert [row.train_loss for row in ours] == pytest.approx(
            [row.train_loss for row in theirs], rel=0.03
        )


def test_bf16_is_near_float32(data: DataSplits) -> None:
    check_bf16(data)


@pytest.mark.slow
def test_processes_train_the_same_and_their_death_is_told(data: DataSplits) -> None:
    made: list[ProcessWorker] = []

    def make_worker() -> ProcessWorker:
        made.append(ProcessWorker())
        return made[-1]

    histories, jobs = train(MIXED, data, make_worker, workers=2, max_stack=4)
    assert len(made) == 2 and not any(worker.process.is_alive() for worker in made)
    check_same_as_alone(MIXED[::3], histories[::3], jobs[::3], data)

    histories = [[], []]
    forever, short = (Case(0, 10**6), Case(1, 2, width=64))
    with JobScheduler(make_worker, 2, 4) as scheduler:
        long = forever.job(data, histories[0])
        scheduler.add(long)
        while not histories[0]:
            scheduler.step()
        (victim,) = [worker for worker, running in scheduler.running.items() if running]
        assert isinstance(victim, ProcessWorker) and victim.process.pid
        os.kill(victim.process.pid, signal.SIGKILL)
        other = short.job(data, histories[1])
        scheduler.add(other)
        while not (long.ended and other.ended):
            scheduler.step()
    assert isinstance(long.error, ProcessDied) and "SIGKILL" in str(long.error)
    assert other.error is None and len(histories[1]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, pytest.param(False, marks=pytest.mark.torture)])
def test_the_death_of_a_process_costs_one_trial(
    kept: bool, data: DataSplits, tmp_path: Path
) -> None:
    """Whoever is training trial 0 dies: first its stack of three, then it alone."""
    cases = [Case(seed, 6, dropout=0.1) for seed in range(3)]
    histories: list[list[Epoch]] = [[] for _ in cases]
    jobs = [case.job(data, history) for case, history in zip(cases, histories)]
    for number, job in enumerate(jobs) if kept else ():
        job.trial.checkpoint = Checkpoint(tmp_path / f"{number}.pt", str(number), 0.0)
    kills = 0
    with JobScheduler(lambda: ProcessWorker(), 1, 4) as scheduler:
        for job in jobs:
            scheduler.add(job)
        while not all(job.ended for job in jobs):
            scheduler.step()
            for worker, running in scheduler.running.items():
                if 0 in running and len(histories[0]) > 2 + kills and kills < 2:
                    assert isinstance(worker, ProcessWorker) and worker.process.pid
                    os.kill(worker.process.pid, signal.SIGKILL)
                    kills += 1
        assert scheduler.loaded_data.keys() <= scheduler.running.keys()
    assert kills == 2 and isinstance(jobs[0].error, ProcessDied)
    assert [row.epoch for row in histories[1]] == [1, 2, 3, 4, 5, 6]
    for job in jobs:
        job.trial.checkpoint = None
    check_same_as_alone(cases[1:], histories[1:], jobs[1:], data)


def test_a_failure_costs_one_trial(data: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Chunk.run

    def fail(chunk: Chunk, batches: int) -> None:
        if len(chunk.rows) > 2:
            raise torch.OutOfMemoryError("no room for so many")
        if any(row.number == 5 for row in chunk.rows) and chunk.batch == 5:
            raise RuntimeError("this one never works")
        real(chunk, batches)

    cases = [Case(seed) for seed in range(8)]
    with monkeypatch.context() as patch:
        patch.setattr(Chunk, "run", fail)
        histories, jobs = train(cases, data)
    assert str(jobs[5].error) == "this one never works" and not histories[5]
    del cases[5], histories[5], jobs[5]
    check_same_as_alone(cases, histories, jobs, data)


@pytest.mark.parametrize("after", [3, 6])  # within the epoch, and in its last, shorter batch
def test_a_step_that_fails_half_way_is_taken_again(
    after: int, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its last part, where most memory is needed."""
    real, steps = optimizers.Adam.update, 0

    def fail(parameters: torch.Tensor, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps > after and len(parameters) > 2:
            raise torch.OutOfMemoryError("no room for so many")
        real(parameters, *arguments)

    cases = [Case(seed, recipe=Recipe(clip_norm=0.5, average=0.9)) for seed in range(8)]
    with monkeypatch.context() as patch:
        patch.setattr(optimizers.Adam, "update", staticmethod(fail))
        histories, jobs = train(cases, data)
    check_same_as_alone(cases, histories, jobs, data)


@pytest.mark.parametrize(
    ("cls", "method"),
    [(TrialState, "begin"), (TrialState, "epoch_ended"), (Chunk, "begin_epoch")],
)
def test_a_failure_between_steps_costs_one_trial(
    cls: type, method: str, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(cls, method)

    def fail(self: Any, *arguments: Any) -> None:
        if any(row.number == 5 for row in getattr(self, "rows", [self])):
            raise torch.OutOfMemoryError("no room")
        real(self, *arguments)

    cases = [Case(seed, recipe=Recipe(early_stopping=EARLY)) for seed in range(7)]
    with monkeypatch.context() as patch:
        patch.setattr(cls, method, fail)
        histories, jobs = train(cases, data)
    assert str(jobs[5].error) == "no room"
    del cases[5], histories[5], jobs[5]
    check_same_as_alone(cases, histories, jobs, data)


def test_a_callback_that_raises_ends_the_training(data: DataSplits) -> None:
    """As of a full disk: it is no failure of the worker, from which the trials would go on."""

    def on_epoch(_: Epoch) -> None:
        raise OSError("no space left")

    jobs = [Case(seed).job(data, []) for seed in range(2)]
    jobs[1].on_epoch = on_epoch
    with pytest.raises(OSError, match="no space left"):
        training_jobs.train(jobs)


def test_memory_bounds_a_stack(data: DataSplits, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Case(width=128).job(data, []).trial
    page = os.sysconf("SC_PAGE_SIZE")
    # 109,386 parameters: weights, gradient, a temporary and Adam's two moments, 4 bytes each.
    model = 4 * 109_386 * 5
    activations = 8 * 32 * (784 + 784 + 2 * 128 + 2 * 64 + 10)
    for stacks in (1, 3, 10):
        pages = 2 * (stacks * (model + activations)) // page + 1
        monkeypatch.setattr(
            stack.os, "sysconf", lambda n, pages=pages: page if "SIZE" in n else pages
        )
        assert stack.max_stack_size(one, 32, data) == stacks
    added: list[int] = []
    real = stack.Stack.add
    monkeypatch.setattr(stack, "max_stack_size", lambda *_: 3 - len(added))

    def add(self: stack.Stack, number: int, trial: Trial, state: State | None = None) -> None:
        added.append(number)
        assert len(self.rows) < 3
        real(self, number, trial, state)

    monkeypatch.setattr(stack.Stack, "add", add)
    histories, _ = train([Case(seed, 1) for seed in range(3)], data)
    assert len(added) == 3 and all(len(history) == 1 for history in histories)


class Hidden(nn.Sequential):
    """Computes with an attribute that no tensor holds."""

    def __init__(self, scale: float) -> None:
        super().__init__(nn.Flatten(), nn.Linear(784, 10))
        self.scale = scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * self.scale  # type: ignore[no-any-return]


class Random(nn.Sequential):
    """Draws random numbers itself."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images + torch.rand_like(images))  # type: ignore[no-any-return]


def test_models_that_differ_in_more_than_tensors_do_not_share_a_step(data: DataSplits) -> None:
    def kind(model: nn.Module, optimizer: Any = torch.optim.Adam) -> StackKey:
        one = Trial(model, optimizer, {"lr": 0.1}, 0, 1)
        return stack.stack_key(one, data, 32, False, False, 5, 1)

    assert kind(Hidden(1.0)) == kind(Hidden(1.0)) != kind(Hidden(2.0))
    assert kind(Hidden(1.0)) != kind(Hidden(1.0), torch.optim.AdamW)
    assert kind(mlp(32, 2, None, 0.1)) == kind(mlp(32, 2, None, 0.2)) != kind(mlp(32, 2, None, 0))
    frozen = mlp(32, 2, None, 0.0)
    frozen[1].requires_grad_(False)
    assert kind(frozen) != kind(mlp(32, 2, None, 0.0))
    draws = [Random(nn.Flatten(), nn.Linear(784, 10)) for _ in range(2)]
    assert kind(draws[0]).why_alone and kind(draws[1]).why_alone
    assert kind(mlp(32, 2, None, 0.0), torch.optim.Adagrad).why_alone
    assert kind(mlp(32, 2, None, 0.0)).why_alone is None
    convolution = nn.Sequential(nn.Conv2d(1, 2, 28), nn.Flatten(), nn.Linear(2, 10))
    assert "convolves" in str(kind(convolution).why_alone)


class Recorder(Worker):
    """A worker that trains nothing and notes which trials were together."""

    def __init__(self, together: list[tuple[StackKey, frozenset[int]]]) -> None:
        self.together = together
        self.epochs: dict[int, int] = {}

    def call(self, method: str, *arguments: Any) -> Any:
        if method == "open":
            assert not self.epochs
            self.kind = arguments[0]
        elif method == "add":
            number, _, state = arguments
            self.epochs[number] = state or 0
        elif method == "release":
            return self.epochs.pop(arguments[0])
        elif method == "remove":
            del self.epochs[arguments[0]]
            return {}
        return None

    def event(self, tell: Any) -> dict[int, Outcome | Exception]:
        self.together.append((self.kind, frozenset(self.epochs)))
        self.epochs = {number: epoch + 1 for number, epoch in self.epochs.items()}
        rows = {n: Epoch(epoch, 0.1, 1, 0, 1, 0, 0.0) for n, epoch in self.epochs.items()}
        return {n: Outcome(row, row, False) for n, row in rows.items()}


@settings(deadline=None, max_examples=60)
@given(
    trials=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), min_size=1, max_size=20),
    max_stack=st.integers(1, 6),
    workers=st.integers(1, 3),
    late=st.integers(0, 10),
)
def test_every_trial_is_in_exactly_one_stack(
    trials: list[tuple[str, int]], max_stack: int, workers: int, late: int
) -> None:
    data = DataSplits(
        *(Examples(torch.zeros(8, 1, 28, 28), torch.zeros(8)) for _ in range(2)), None, FORMAT
    )
    together: list[tuple[StackKey, frozenset[int]]] = []
    told: list[list[int]] = [[] for _ in trials]
    jobs = []
    for index, (shape, epochs) in enumerate(trials):
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10, bias=shape != "a"))
        if shape == "c":
            model.requires_grad_(True)[1].bias.requires_grad_(False)  # type: ignore[union-attr]
        one = Trial(model, torch.optim.Adam, {"lr": 0.1}, 0, epochs)
        jobs.append(
            TrainingJob(
                one,
                data,
                4,
                False,
                False,
                5,
                1,
                on_epoch=lambda row, index=index: told[index].append(row.epoch),  # type: ignore[misc]
                on_batches=lambda _: None,
            )
        )
    original, stack.load = stack.load, lambda *_: None
    try:
        with JobScheduler(lambda: Recorder(together), workers, max_stack) as scheduler:
            coming = iter(jobs)
            for job in itertools.islice(coming, max(1, len(jobs) - late)):
                scheduler.add(job)
            while not all(job.ended for job in jobs):
                if next_one := next(coming, None):
                    scheduler.add(next_one)
                scheduler.step()
    finally:
        stack.load = original
    assert told == [list(range(1, epochs + 1)) for _, epochs in trials]
    kinds = {number: job.stack_key for number, job in enumerate(jobs)}
    for kind, members in together:
        assert 1 <= len(members) <= max_stack
        assert {kinds[number] for number in members} == {kind}
    for number, (_, epochs) in enumerate(trials):
        assert sum(number in members for _, members in together) == epochs


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=8), st.integers(1, 3), st.integers(1, 3))
def test_stacks_at_work_have_no_more_threads_than_there_are(
    wanted: list[int], workers: int, threads: int
) -> None:
    data = DataSplits(
        *(Examples(torch.zeros(8, 1, 28, 28), torch.zeros(8)) for _ in range(2)), None, FORMAT
    )
    jobs = [replace(Case(seed).job(data, []), threads=each) for seed, each in enumerate(wanted)]
    original, stack.load = stack.load, lambda *_: None
    try:
        with JobScheduler(lambda: Recorder([]), workers, 4, threads) as scheduler:
            for job in jobs:
                scheduler.add(job)
            while not all(job.ended for job in jobs):
                scheduler.step()
                at_work = [set(map(_threads, one.values())) for one in scheduler.running.values()]
                assert all(len(kinds) <= 1 for kinds in at_work)
                used = [kinds.pop() for kinds in at_work if kinds]
                assert sum(used) <= threads or len(used) == 1
    finally:
        stack.load = original


def _threads(job: TrainingJob) -> int:
    return job.threads


def test_a_process_takes_the_threads_of_each_stack(data: DataSplits) -> None:
    told: list[int] = []

    class Counting(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            told.append(torch.get_num_threads())
            return super().forward(images.flatten(1))

    for threads in (1, 2, 1):
        model = Counting(784, 10)
        one = Trial(model, torch.optim.Adam, {"lr": 0.1}, 0, 1)
        ignore: Callable[[Any], None] = lambda _: None  # noqa: E731
        job = TrainingJob(one, data, 100, False, False, 5, threads, ignore, ignore)
        told.clear()
        training_jobs.train([job])
        assert set(told[-3:]) == {threads}


@pytest.mark.slow
def test_busy_processes_end_together(data: DataSplits) -> None:
    """All but the first are within an epoch that takes many seconds, and listen to nobody."""
    workers: list[ProcessWorker] = []

    def make_worker() -> ProcessWorker:
        workers.append(ProcessWorker())
        return workers[-1]

    images = Examples(data.train.inputs.repeat(200, 1, 1, 1), data.train.labels.repeat(200))
    with JobScheduler(make_worker, 4, 1) as scheduler:
        for seed in range(4):
            job = Case(seed, 2).job(replace(data, train=images), [])
            often = 10**6 if seed else 10
            scheduler.add(replace(job, batch_size=1, log_every=often))
        scheduler.step()
        assert sum(map(bool, scheduler.running.values())) == 4
        began = time.monotonic()
    assert len(workers) == 4 and not any(worker.process.is_alive() for worker in workers)
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("worker", [Worker, ProcessWorker])
def test_an_idle_worker_takes_over_half_of_a_stack(
    worker: type[Worker], data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    call = worker.call

    def counted(self: Worker, method: str, *arguments: Any) -> Any:
        calls.append(method)
        return call(self, method, *arguments)

    monkeypatch.setattr(worker, "call", counted)
    early = EarlyStoppingConfig(patience=9, min_change=0, metric="val_loss")
    recipe = Recipe(average=0.9, early_stopping=early)
    cases = [
        Case(seed, epochs=epochs, dropout=0.2, batch_norm=True, recipe=recipe)
        for seed, epochs in enumerate((2, 2, 8, 9))
    ]
    histories, jobs = train(cases, data, worker, workers=2)
    monkeypatch.undo()
    assert calls.count("release") == 1
    check_same_as_alone(cases, histories, jobs, data)


def test_a_worker_that_cannot_take_over_is_replaced(
    data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Worker.call

    def fails(self: Worker, method: str, *arguments: Any) -> Any:
        if method == "add" and arguments[2] is not None:
            raise RuntimeError("it has died")
        return call(self, method, *arguments)

    monkeypatch.setattr(Worker, "call", fails)
    cases = [Case(seed, epochs=epochs) for seed, epochs in enumerate((2, 2, 8, 9))]
    histories, jobs = train(cases, data, workers=2)
    monkeypatch.undo()
    assert not any(job.error for job in jobs)
    check_same_as_alone(cases, histories, jobs, data)
