"""The number and kind of workers for the training of many trials."""

from collections.abc import Sequence

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.engine.training_jobs import JobScheduler
from fmnist_sweep.engine.workers import ProcessWorker, Worker
from fmnist_sweep.task import build
from fmnist_sweep.task.config import Config

MAX_STACK = 8


def scheduler(
    configs: Sequence[Config],
    cores: int,
    max_stack: int = MAX_STACK,
    workers: int | None = None,
) -> JobScheduler:
    """Make a scheduler for trials with such configurations.

    On a CPU, train as many stacks side by side as the cores allow, each in its own process. A GPU
    trains one stack, in this process.

    Args:
        configs: configurations of some of the trials, at least one.
        cores: CPU cores for this process and its workers.
        max_stack: maximum number of trials in a stack.
        workers: the number of workers, instead of one for `trainer.threads` cores.
    """
    on_cpu = all(map(_is_on_cpu, configs))
    threads = max(config.trainer.threads for config in configs)
    count = workers or max(1, cores // threads if on_cpu else 1)
    worker: type[Worker] = ProcessWorker if on_cpu or count > 1 else Worker
    return JobScheduler(worker, count, max_stack, count * threads)


def _is_on_cpu(config: Config) -> bool:
    try:
        return build.device(config).type == "cpu"
    except ConfigError:  # the trials report it
        return True
