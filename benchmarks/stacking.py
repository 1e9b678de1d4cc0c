"""Time trials in stacks, compared with a single trial and the peers, on the CPU and a CUDA device.

On the CPU, stacks of 8 and 64 trials are also compared with the bare kernels. On the device, a step
trains up to 256 trials; the published loop runs there as well.
"""

import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import torch

from benchmarks import training
from benchmarks.training import BATCH, CPU, Contender, in_turns, ratio, timed
from fmnist_sweep.engine.data import BYTES_TO_UNIT, DataSplits
from fmnist_sweep.engine.training_jobs import JobScheduler, TrainingJob
from fmnist_sweep.engine.workers import ProcessWorker, Worker
from fmnist_sweep.task import build
from fmnist_sweep.task.config import Config
from fmnist_sweep.task.data import splits

EPOCHS = 2
STEPS = 1875  # steps of an epoch
ALONE = "fmnist_sweep, one trial, both cores"
BARE = "bare kernels of eight (products, Adam)"
EACH = "fmnist_sweep, 8 trials, each alone, one a core"
EIGHT, MANY = "fmnist_sweep, 8 trials in stacks", "fmnist_sweep, 64 trials in stacks"
GPU_STACKS = (1, 8, 64, 256)
LOADERS = 8  # DataLoader processes of a peer on the CUDA device


class Stacks:
    """Trials of the default configuration with several learning rates, trained as in a sweep."""

    def __init__(self, data: DataSplits, config: Config, scheduler: JobScheduler) -> None:
        self.data = data
        self.config = config
        self.scheduler = scheduler

    def epoch(self, size: int) -> float:
        """Train trials for two epochs and evaluate each epoch.

        Args:
            size: the number of trials.

        Returns:
            Seconds per trial and epoch.
        """
        return timed(lambda: self._train(size)) / size / EPOCHS

    def _train(self, size: int) -> None:
        jobs = [self._job(number, size) for number in range(size)]
        for job in jobs:
            self.scheduler.add(job)
        while not all(job.ended for job in jobs):
            self.scheduler.step()

    def _job(self, number: int, size: int) -> TrainingJob:
        optimizer = self.config.optimizer.model_copy(update={"lr": 0.0003 * 10 ** (number / size)})
        config = self.config.model_copy(update={"seed": number, "optimizer": optimizer})
        trial = build.build(config, self.data.format, len(self.data.train))
        trial.epochs = EPOCHS
        return TrainingJob(trial, self.data, BATCH, True, False, 200, 1, _ignore, _ignore)


def _ignore(_: Any) -> None:
    pass


def bare(steps: int, trials: int) -> None:
    """Compute only a stack's matrix products and Adam's update, on one thread.

    The thread setting lasts, so run this in another process.
    """
    torch.set_num_threads(1)
    sizes = [(784, 128), (128, 64), (64, 10)]
    weights = [torch.randn(trials, i, o) * 0.05 for i, o in sizes]
    inputs = [torch.randn(trials, BATCH, i) for i, _ in sizes]
    errors = [torch.randn(trials, BATCH, o) for _, o in sizes]
    flat = torch.nn.Parameter(torch.randn(trials * 109_386))
    flat.grad = torch.randn_like(flat) * 0.01
    adam = torch.optim.Adam([flat], fused=True)
    for _ in range(steps):
        for x, w, e in zip(inputs, weights, errors):
            torch.bmm(x, w)
            torch.bmm(x.transpose(1, 2), e)
        for w, e in zip(weights[1:], errors[1:]):
            torch.bmm(e, w.transpose(1, 2))
        adam.step()


def measure(root: str, rounds: int, cores: int) -> dict[str, list[float]]:
    """Measure training and evaluation on the CPU.

    Args:
        cores: workers of fmnist_sweep, and threads of the peers.

    Returns:
        Seconds per trial and epoch of each round, by contender.
    """
    config = training.published_protocol(root)
    data = splits.load(config.data, CPU, test=False)
    torch.set_flush_denormal(True)
    torch.set_num_threads(cores)
    alone = training.ours(data, config)
    peers = [training.published(root), training.scikit_learn(data), alone]
    stacks, singles = (
        Stacks(data, config, JobScheduler(ProcessWorker, cores, max_stack)) for max_stack in (64, 1)
    )
    spawn = multiprocessing.get_context("spawn")
    with stacks.scheduler, singles.scheduler, ProcessPoolExecutor(cores, spawn) as pool:

        def kernels(steps: int) -> None:
            list(pool.map(bare, [steps] * cores, [8 // cores] * cores))

        work: dict[str, Callable[[], float]] = {
            **{peer.name if peer is not alone else ALONE: peer.epoch for peer in peers if peer},
            EACH: lambda: singles.epoch(8),
            EIGHT: lambda: stacks.epoch(8),
            MANY: lambda: stacks.epoch(64),
            BARE: lambda: (
                (timed(lambda: kernels(500)) - timed(lambda: kernels(10))) / 490 * STEPS / 8
            ),
        }
        return in_turns(work, rounds)


def table(seconds: dict[str, list[float]]) -> str:
    """Return the median seconds, and each contender's time relative to eight trials in stacks."""
    lines = ["| a trial and epoch, evaluated | seconds | x eight in stacks |", "|---|---|---|"]
    for name, values in seconds.items():
        median = f"{statistics.median(values):.3f}"
        lines.append(f"| {name} | {median} | {ratio(values, seconds[EIGHT], 2)} |")
    return "\n".join(lines)


def resident(data: DataSplits) -> Contender:
    """Return a hand-written loop over images on the device: PyTorch's fused Adam, no `.item()`."""
    device = data.device
    model = training.published_network().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    images, validation = (BYTES_TO_UNIT(p.inputs) for p in (data.train, data.validation))
    total = torch.zeros((), device=device)

    def train() -> None:
        for chosen in torch.split(torch.randperm(len(images), device=device), BATCH):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                model(images[chosen]), data.train.labels[chosen]
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total.add_(loss.detach())
        total.item()

    @torch.no_grad()
    def evaluate() -> None:
        (model(validation).argmax(1) == data.validation.labels).sum().item()

    return Contender("images on the GPU, a loop by hand", train, evaluate)


def measure_on_gpu(root: str, rounds: int) -> dict[str, list[float]]:
    """Measure training and evaluation on the CUDA device.

    Returns:
        Seconds per trial and epoch of each round, by contender.
    """
    device = torch.device("cuda")
    config = training.published_protocol(root)
    data = splits.load(config.data, device, test=False)
    loading = {"num_workers": LOADERS, "pin_memory": True, "persistent_workers": True}
    with_loaders = f"published loop, {LOADERS} loading processes"
    peers = [
        training.published(root, device=device),
        training.published(root, name=with_loaders, device=device, **loading),
        resident(data),
    ]
    stacks = Stacks(data, config, JobScheduler(Worker, 1, max_stack=max(GPU_STACKS)))

    with stacks.scheduler:
        work = {peer.name: peer.epoch for peer in peers}
        work |= {f"fmnist_sweep, {n} to a step": partial(stacks.epoch, n) for n in GPU_STACKS}
        return in_turns(work, rounds)


def gpu_table(seconds: dict[str, list[float]]) -> str:
    """Return the medians, and each contender's time relative to a trial of the largest stack."""
    largest = list(seconds.values())[-1]
    lines = [
        f"| a trial and epoch on {torch.cuda.get_device_name()} | milliseconds | x the last |",
        "|---|---|---|",
    ]
    for name, values in seconds.items():
        median = f"{1000 * statistics.median(values):,.1f}"
        lines.append(f"| {name} | {median} | {ratio(values, largest, 1)} |")
    return "\n".join(lines)
