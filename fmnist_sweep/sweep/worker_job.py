"""Launcher jobs that each train a share of a sweep (`hydra.sweeper.shares`).

A launcher of a cluster starts one such job per machine instead of one job per trial. Each job takes
trials until none is left, and trains them in stacks if the application can.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
from hydra.types import HydraContext
from omegaconf import DictConfig
from optuna.trial import FrozenTrial
from rich.console import Console

from fmnist_sweep.base.errors import MachineFault, StopSweep
from fmnist_sweep.base.processes import cores, cores_from_environment
from fmnist_sweep.sweep.budget import Budget
from fmnist_sweep.sweep.constraints import Constraints
from fmnist_sweep.sweep.job import SweepJob, silence_console
from fmnist_sweep.sweep.loop import SweepLoop, trials_at_once
from fmnist_sweep.sweep.runners import BasicRunner
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import SweepStudy
from fmnist_sweep.sweep.task import seed_of


@dataclass
class WorkerJob:
    """The task function of a job that takes trials until none is left; can be pickled."""

    job: SweepJob
    folder: Path
    name: str
    space: Space
    settings: Settings
    extend: Callable[[optuna.Trial], None] | None
    config: DictConfig
    context: HydraContext
    started: float
    used_before: float
    known: list[FrozenTrial]
    constraints: Constraints

    def __call__(self, _: DictConfig) -> None:
        silence_console()
        seed = seed_of(self.config, self.settings.seed_key) or 0
        free_keys = self.job.sweep_task.free_keys
        study = SweepStudy(
            self.folder,
            self.name,
            self.space,
            self.settings,
            seed,
            free_keys,
            self.known,
            self.constraints.allow,
            self.job.sweep_task.epochs_key,
        )
        workers = max(1, study.processes() - 1)  # the launching process trains nothing
        task = self.job.sweep_task
        own_cores = cores_from_environment() or cores() // workers
        runner = task.runner(self.config, self.context, self.job, own_cores) or BasicRunner(
            self.config, self.context, self.job
        )
        # No more than an even share: the first job would take all trials of a small sweep.
        even_share = math.ceil(study.space.n_trials / (self.settings.shares or 1))
        at_once = min(trials_at_once(self.settings, study.space, runner), even_share)
        quiet = Console(quiet=True)
        try:
            budget = Budget(self.settings, study, self.started, self.used_before)
            loop = SweepLoop(study, budget, runner.run, self.extend, quiet, at_once)
            with loop.background:
                loop.run_as_worker()
        except StopSweep as stop:
            raise MachineFault(str(stop)) from None
        finally:
            study.close()
