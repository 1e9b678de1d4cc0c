"""The number and kind of workers for the training of many trials."""

from collections.abc import Sequence

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.engine.stack import CHUNK_SIZE
from fmnist_sweep.engine.training_jobs import JobScheduler
from fmnist_sweep.engine.workers import ProcessWorker, Worker
from fmnist_sweep.task import build
from fmnist_sweep.task.config import Config


def largest_stack(configs: Sequence[Config]) -> int:
    """Return the default of `hydra.launcher.max_stack`: the largest chunk of the device."""
    sizes = [CHUNK_SIZE[_device_type(config)] for config in configs]
    return min(sizes, default=CHUNK_SIZE["cpu"])


def ahead(configs: Sequence[Config], cores: int, has_scheduler: bool) -> int:
    """Return how many trials of a search to begin before the first has ended.

    A GPU needs as many as a stack holds. On a CPU results to learn from are worth more, most of all
    to a scheduler (`hydra.sweeper.scheduler`), whose trials end after a few epochs.
    """
    largest = largest_stack(configs)
    on_cpu = all(_device_type(config) == "cpu" for config in configs)
    return min(cores, largest) if has_scheduler and on_cpu else largest


def scheduler(
    configs: Sequence[Config],
    cores: int,
    max_stack: int | None = None,
    workers: int | None = None,
    at_once: int | None = None,
) -> JobScheduler:
    """Make a scheduler for trials with such configurations.

    On a CPU, train as many stacks side by side as the cores allow, each in its own process. A GPU
    trains one stack, in this process.

    Args:
        configs: configurations of some of the trials; a CPU and one thread without any.
        cores: CPU cores for this process and its workers.
        max_stack: maximum number of trials in a stack; None for the default.
        workers: the number of workers, instead of one for `trainer.threads` cores.
        at_once: a number of trials that must train at once, whatever is best.
    """
    on_cpu = all(_device_type(config) == "cpu" for config in configs)
    threads = max((config.trainer.threads for config in configs), default=1)
    count = workers or max(1, cores // threads if on_cpu else 1)
    worker: type[Worker] = ProcessWorker if on_cpu or count > 1 else Worker
    default = max(largest_stack(configs), -(-(at_once or 0) // count))
    return JobScheduler(worker, count, max_stack or default, count * threads)


def _device_type(config: Config) -> str:
    try:
        return build.device(config).type
    except ConfigError:  # the trials report it
        return "cpu"
