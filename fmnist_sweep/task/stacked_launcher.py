"""Hydra's plugin `hydra/launcher=stacked`.

Every Hydra application loads it, so the module imports little.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fmnist_sweep.base import processes
from fmnist_sweep.base.background import Background
from fmnist_sweep.engine.settings import WORKER_MODULES
from fmnist_sweep.sweep.hydra_job import Job
from fmnist_sweep.sweep.runners import JobSource, Runner, error_of
from fmnist_sweep.sweep.task import Task

# What the workers need, and what the command imports, which each process imports again.
SERVER_MODULES = (*WORKER_MODULES, "fmnist_sweep.task.fashion")


class StackedLauncher(Launcher):
    """Train trials together, those that can share a training step in one stack.

    Settings are the keys of conf/hydra/launcher/stacked.yaml.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra passes before `launch`."""
        self.hydra_setup = config, hydra_context, task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run a batch of jobs: Hydra's interface, which other sweepers use."""
        jobs = iter(enumerate(job_overrides, initial_job_idx))
        returns: dict[int, JobReturn] = {}
        with Background() as background:
            self._run(
                processes.cores(),
                lambda count: list(islice(jobs, count)),
                returns.__setitem__,
                background,
            )
            background.close()
        return [returns[number] for number in sorted(returns)]

    def _run(
        self,
        cores: int,
        take: Callable[[int], list[Job]],
        on_end: Callable[[int, JobReturn], None],
        background: Background,
    ) -> None:
        from fmnist_sweep.task import stacked_runner

        settings = stacked_runner.read(self.settings)
        stacked_runner.run(settings, cores, *self.hydra_setup, take, on_end, background)

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None:
        """Check `hydra.launcher` before a sweep begins.

        Raises:
            ConfigError: one line with the key, its value and the allowed range.
        """
        from fmnist_sweep.task import stacked_runner

        stacked_runner.read(settings)

    @staticmethod
    def warm_up(task: Task) -> None:
        """Start importing what the workers need, before the sweep is checked."""
        if hasattr(task, "prepare"):  # else no worker will be started
            processes.start_server(*SERVER_MODULES)

    def runner(self, cores: int) -> Runner:
        """Return a runner that asks for a job whenever another has ended."""
        return _StackedRunner(self, cores)


class _StackedRunner:
    def __init__(self, launcher: StackedLauncher, cores: int) -> None:
        self.launcher = launcher
        self.cores = cores

    @property
    def ahead(self) -> int:
        from fmnist_sweep.task import stacked_runner

        return stacked_runner.ahead(self.launcher.hydra_setup[0], self.cores)

    def run(self, jobs: JobSource) -> None:
        def on_end(number: int, returned: JobReturn) -> None:
            jobs.ended(number, error_of(returned))

        self.launcher._run(self.cores, jobs.take, on_end, jobs.background)
