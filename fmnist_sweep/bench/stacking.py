"""Eight and more trials in stacks, beside one alone, the peers and the bare kernels."""

import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from fmnist_sweep import build
from fmnist_sweep.bench import training
from fmnist_sweep.bench.training import BATCH, CPU, in_turns, ratio, timed
from fmnist_sweep.config import Config
from fmnist_sweep.data import batches, source
from fmnist_sweep.data.batches import Protocol
from fmnist_sweep.training.lanes import ProcessLane
from fmnist_sweep.training.scheduling import Request, Scheduler

EPOCHS = 2
STEPS = 1875  # of an epoch
ALONE = "fmnist_sweep, one trial, both cores"
BARE = "bare kernels of eight (products, Adam)"
EACH = "fmnist_sweep, 8 trials, each alone, one a core"
EIGHT, MANY = "fmnist_sweep, 8 trials in stacks", "fmnist_sweep, 64 trials in stacks"


class Stacks:
    """Learning rates of the default configuration, trained as a sweep trains them."""

    def __init__(self, data: Protocol, config: Config, scheduler: Scheduler) -> None:
        self.data = data
        self.config = config
        self.scheduler = scheduler

    def epoch(self, size: int) -> float:
        """Seconds of one of so many trials for an epoch, evaluated, of two."""
        return timed(lambda: self._train(size)) / size / EPOCHS

    def _train(self, size: int) -> None:
        requests = [self._request(number, size) for number in range(size)]
        for request in requests:
            self.scheduler.add(request)
        while not all(request.ended for request in requests):
            self.scheduler.step()

    def _request(self, number: int, size: int) -> Request:
        optimizer = self.config.optimizer.model_copy(update={"lr": 0.0003 * 10 ** (number / size)})
        one = build.build(self.config.model_copy(update={"seed": number, "optimizer": optimizer}))
        one.epochs = EPOCHS
        return Request(one, self.data, BATCH, True, False, 200, _ignore, _ignore)


def _ignore(_: Any) -> None:
    pass


def bare(steps: int, trials: int) -> None:
    """The products and Adam's update alone; runs in a process of its own."""
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
    """Seconds of training and evaluation for a trial and epoch, by contender and round."""
    config = training.published_protocol(str(source.locate(root).folder.parent.parent))
    data = batches.load(config.data, CPU, test=False)
    torch.set_flush_denormal(True)
    torch.set_num_threads(cores)
    alone = training.ours(data, config)
    peers = [training.published(config.data.root), training.scikit_learn(data), alone]
    stacks, each = (
        Stacks(data, config, Scheduler(lambda: ProcessLane(1), cores, max_stack))
        for max_stack in (64, 1)
    )
    spawn = multiprocessing.get_context("spawn")
    with stacks.scheduler, each.scheduler, ProcessPoolExecutor(cores, spawn) as pool:

        def kernels(steps: int) -> None:
            list(pool.map(bare, [steps] * cores, [8 // cores] * cores))

        work: dict[str, Callable[[], float]] = {
            **{peer.name if peer is not alone else ALONE: peer.epoch for peer in peers if peer},
            EACH: lambda: each.epoch(8),
            EIGHT: lambda: stacks.epoch(8),
            MANY: lambda: stacks.epoch(64),
            BARE: lambda: (
                (timed(lambda: kernels(500)) - timed(lambda: kernels(10))) / 490 * STEPS / 8
            ),
        }
        return in_turns(work, rounds)


def table(seconds: dict[str, list[float]]) -> str:
    """Medians, and how many times as long as a trial of eight in stacks each takes."""
    lines = ["| a trial and epoch, evaluated | seconds | x eight in stacks |", "|---|---|---|"]
    for name, values in seconds.items():
        median = f"{statistics.median(values):.3f}"
        lines.append(f"| {name} | {median} | {ratio(values, seconds[EIGHT], 2)} |")
    return "\n".join(lines)
