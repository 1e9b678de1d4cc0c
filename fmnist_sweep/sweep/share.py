"""A job that is a share of a sweep: it takes trials until none is left, many at once if it can.

Launchers of clusters start one such job a machine instead of one job a trial, so that their
machines gain from stacks as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
from hydra.types import HydraContext
from omegaconf import DictConfig
from rich.console import Console

from fmnist_sweep.base.errors import MachineFault, StopSweep
from fmnist_sweep.base.processes import cores, cores_left
from fmnist_sweep.sweep.job import SweepJob, silence_console
from fmnist_sweep.sweep.loop import Loop, ahead
from fmnist_sweep.sweep.runners import BasicRunner
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import SweepStudy
from fmnist_sweep.sweep.task import seed_of


@dataclass
class Share:
    """The task function of such jobs; travels to other processes by pickle."""

    job: SweepJob
    folder: Path
    name: str
    space: Space
    settings: Settings
    extend: Callable[[optuna.Trial], None] | None
    config: DictConfig
    context: HydraContext

    def __call__(self, _: DictConfig) -> None:
        silence_console()
        seed = seed_of(self.config, self.settings.seed_key) or 0
        free_keys = self.job.sweep_task.free_keys
        study = SweepStudy(self.folder, self.name, self.space, self.settings, seed, free_keys)
        others = max(1, study.processes() - 1)  # the one that launched the shares trains nothing
        task = self.job.sweep_task
        mine = cores_left() or cores() // others
        runner = task.runner(self.config, self.context, self.job, mine) or BasicRunner(
            self.config, self.context, self.job
        )
        # No more than its part: one of few shares would take all trials of a small sweep.
        part = math.ceil(study.space.n_trials / (self.settings.shares or 1))
        at_once = min(ahead(self.settings, study.space), part)
        quiet = Console(quiet=True)
        try:
            Loop(study, self.settings, runner.run, self.extend, quiet, at_once).work()
        except StopSweep as stop:
            raise MachineFault(str(stop)) from None
        finally:
            study.close()
