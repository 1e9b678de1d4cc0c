"""Hydra jobs: compose and run one in any process."""

import pickle
from collections.abc import Iterable, Sequence

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from fmnist_sweep.base.errors import ImpossibleTrial, hydra_line
from fmnist_sweep.sweep.task import task_of

Job = tuple[int, Sequence[str]]  # number and overrides


def compose(
    job: Job, config: DictConfig, context: HydraContext, known_keys: Iterable[str] = ()
) -> DictConfig:
    """Compose a job's configuration, including the `hydra` section.

    Args:
        job: number and overrides.
        known_keys: keys to suggest for a misspelt key.

    Raises:
        ImpossibleTrial: the overrides do not go together.
    """
    number, overrides = job
    try:
        composed = context.config_loader.load_sweep_config(config, list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ImpossibleTrial(hydra_line(error, known_keys)) from None
    with open_dict(composed):
        composed.hydra.job.id = str(number)
        composed.hydra.job.num = number
    return composed


def execute(config: DictConfig, context: HydraContext, task: TaskFunction) -> JobReturn:
    """Run a composed job; Hydra creates its folder and log and calls its callbacks."""
    return run_job(
        hydra_context=context,
        task_function=task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def failed(error: Exception) -> JobReturn:
    """Return the result of a job that failed before its task began."""
    returned = JobReturn(status=JobStatus.FAILED)
    returned.return_value = error
    return returned


class RemoteJob:
    """A job to be called in another process, without arguments; can be pickled."""

    def __init__(
        self, job: Job, config: DictConfig, context: HydraContext, task: TaskFunction
    ) -> None:
        # The task is often a function of `__main__`, which only cloudpickle can pickle.
        self.content = cloudpickle.dumps((job, config, context, task, Singleton.get_state()))

    def __call__(self) -> JobReturn:
        setup_globals()
        job, config, context, task, singletons = pickle.loads(self.content)
        Singleton.set_state(singletons)
        composed = compose(job, config, context, task_of(task).known_keys)
        HydraConfig.instance().set_config(composed)
        return execute(composed, context, task)
