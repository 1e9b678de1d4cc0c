"""Hydra's plugin `hydra/launcher=stacked`. Light to import: single runs load it too."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

Job = tuple[int, Sequence[str]]


class StackedLauncher(Launcher):
    """Runs trials together, those that can share a step in one stack.

    Its settings are the keys of conf/hydra/launcher/stacked.yaml.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.cores = len(os.sched_getaffinity(0))  # for it, where nothing says how many workers

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's hook before `launch`."""
        self.surroundings = config, hydra_context, task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Runs a batch of jobs; Hydra's interface, for sweepers that know no other."""
        jobs = enumerate(job_overrides, initial_job_idx)
        returns: dict[int, JobReturn] = {}
        self.launch_each(lambda: next(jobs, None), returns.__setitem__)
        return [returns[number] for number in sorted(returns)]

    def launch_each(
        self, next_job: Callable[[], Job | None], on_end: Callable[[int, JobReturn], None]
    ) -> None:
        """Runs jobs that are asked for as others end.

        Args:
            next_job: gives a job's number and overrides, or None while there is none.
            on_end: told of each job that has ended, at once.
        """
        from fmnist_sweep.sweep import together

        together.launch_each(self.settings, self.cores, *self.surroundings, next_job, on_end)
