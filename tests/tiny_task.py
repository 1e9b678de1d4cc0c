"""A task that trains nothing: `python -m tests.tiny_task -m ...` sweeps like the real command.

Its value depends on the learning rate alone; some seeds make it end in other ways.
"""

import ctypes
import errno
import math
import os
import resource
import signal
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fmnist_sweep.results.record import Epoch
from fmnist_sweep.sweep import sweeps
from fmnist_sweep.sweep.task import Decision, on_epoch
from fmnist_sweep.task.cli import run_hydra_command
from fmnist_sweep.task.config import conf_folder
from fmnist_sweep.task.fashion import FashionTask

# Seeds from here to 99 more.
RAISES, RETURNS_NONE, RETURNS_NAN, EXITS, RETURNS_TEXT, RETURNS_INF = 100, 200, 300, 400, 500, 600
FINDS_THE_DISK_FULL = 1100  # while there is a file `full` beside the sweep's folder
# These take their process with them, or try to.
LEAVES, IS_KILLED, CRASHES, EATS_MEMORY = 700, 800, 900, 1000


def value(lr: float) -> float:
    """Best at 0.001."""
    return 1 / (1 + (math.log10(lr) + 3) ** 2)


def bring_down(kind: int) -> None:
    """Ends this process in one of four ways."""
    if kind == LEAVES:
        os._exit(7)
    if kind == IS_KILLED:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == CRASHES:
        ctypes.string_at(0)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
    bytearray(2**30)


@hydra.main(
    config_path=conf_folder(), config_name="config", execution_whitelist=("fmnist_sweep.*",)
)
@sweeps(FashionTask())
def task(config: DictConfig) -> object:
    """Reports `trainer.epochs` epochs, each of as many milliseconds as TINY_TASK_MS says.

    The trial that TINY_TASK_HANGS_IN names comes to no end.
    """
    kind = config.seed // 100 * 100
    if kind == RAISES:
        raise RuntimeError("the task\nraised")
    if kind == EXITS:
        sys.exit(3)
    if kind == FINDS_THE_DISK_FULL:
        if Path(HydraConfig.get().sweep.dir).with_name("full").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
    elif LEAVES <= kind <= EATS_MEMORY:
        bring_down(kind)
    if os.environ.get("TINY_TASK_HANGS_IN") == str(HydraConfig.get().job.num):
        time.sleep(3600)
    best = value(config.optimizer.lr)
    tell = on_epoch()
    for epoch in range(1, config.trainer.epochs + 1):
        time.sleep(float(os.environ.get("TINY_TASK_MS", "0")) / 1000)
        reached = best * epoch / config.trainer.epochs
        row = Epoch(epoch, config.optimizer.lr, 1 - reached, reached, 1 - reached, reached, 0.0)
        if tell and epoch < config.trainer.epochs and tell(row) != Decision.CONTINUE:
            import optuna

            raise optuna.TrialPruned(f"pruned after epoch {epoch}")
    wrong = {
        RETURNS_NONE: None,
        RETURNS_NAN: math.nan,
        RETURNS_TEXT: "good",
        RETURNS_INF: math.inf,
    }
    if kind in wrong:
        return wrong[kind]
    both = not isinstance(HydraConfig.get().sweeper.objective, str | None)
    return [best, config.optimizer.lr] if both else best


def main() -> None:
    """The command."""
    run_hydra_command(task)


if __name__ == "__main__":
    main()
