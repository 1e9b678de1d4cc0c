"""A job that is a share of a sweep: it takes trials until none is left, and trains them in stacks.

Launchers of clusters start one such job a machine instead of one job a trial, so that their
machines gain from stacks as well.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from fmnist_sweep.config import conf_folder
from fmnist_sweep.processes import cores_left
from fmnist_sweep.sweep.database import Lost, LostElsewhere
from fmnist_sweep.sweep.job import SweepJob
from fmnist_sweep.sweep.launcher import StackedLauncher
from fmnist_sweep.sweep.loop import Loop, ahead
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import SweepStudy


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
        study = SweepStudy(self.folder, self.name, self.space, self.settings, self.config.seed)
        stacks = OmegaConf.load(Path(conf_folder()) / "hydra/launcher/stacked.yaml")
        launcher = StackedLauncher(**{str(key): value for key, value in stacks.items()})
        launcher.setup(hydra_context=self.context, task_function=self.job, config=self.config)
        others = max(1, study.processes() - 1)  # the one that launched the shares trains nothing
        launcher.cores = cores_left() or launcher.cores // others
        # No more than its part: one of few shares would take all trials of a small sweep.
        part = math.ceil(study.space.n_trials / (self.settings.shares or 1))
        at_once = min(ahead(self.settings, study.space), part)
        quiet = Console(quiet=True)
        try:
            Loop(study, self.settings, launcher, at_once, self.extend, quiet).work()
        except Lost as lost:
            raise LostElsewhere(str(lost)) from None
        finally:
            study.close()
