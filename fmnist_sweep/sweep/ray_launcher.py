"""Hydra's plugin `hydra/launcher=ray`: each job is a task of a Ray cluster, or of a local Ray.

Hydra's own plugin for Ray asks for a cloudpickle older than what joblib needs. Light to import:
single runs load it too.
"""

import os
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.sweep.hydra_job import RemoteJob, failed


class RayLauncher(Launcher):
    """Runs a batch of jobs as Ray tasks.

    Args:
        init: arguments of `ray.init`.
        remote: what each job needs of the cluster, as `ray.remote` takes it.
    """

    def __init__(self, init: DictConfig, remote: DictConfig) -> None:
        self.init: Any = OmegaConf.to_container(init, resolve=True)
        self.remote: Any = OmegaConf.to_container(remote, resolve=True)

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None:
        """Connects to Ray before a sweep begins.

        Raises:
            ConfigError: there is no Ray.
        """
        connect(settings["init"])

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's hook before `launch`."""
        self.surroundings = config, hydra_context, task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Runs a batch of jobs; of one whose process dies the others are unharmed.

        Raises:
            ConfigError: there is no Ray.
        """
        ray = connect(self.init)
        run = ray.remote(max_retries=0, **self.remote)(RemoteJob.__call__)
        jobs = [
            run.remote(RemoteJob((number, list(overrides)), *self.surroundings))
            for number, overrides in enumerate(job_overrides, initial_job_idx)
        ]
        try:
            ray.wait(jobs, num_returns=len(jobs))
        except BaseException:
            for job in jobs:
                ray.cancel(job, force=True)
            raise
        return [_result(ray, job) for job in jobs]


def connect(arguments: Any) -> Any:
    """Ray, connected; a local one ends with this process.

    Raises:
        ConfigError: it is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "hydra/launcher=ray: needs the extra ray: pip install 'fmnist-sweep[ray]'"
        ) from None
    if not ray.is_initialized():
        _look_for(arguments.get("address"))
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**arguments)
        except (ConnectionError, ValueError) as error:
            text = " ".join(str(error).split())
            raise ConfigError(f"hydra.launcher.init={arguments}: {text}") from None
        signal.signal(signal.SIGTERM, before)
    return ray


def _look_for(address: str | None) -> None:
    """Ray itself would try for many minutes, and in many lines, to reach what is not there."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"hydra.launcher.init.address={address}: nothing answers there ({error}); "
            "give that of a running Ray, auto, or null for one of this machine"
        ) from None


def _result(ray: Any, job: Any) -> JobReturn:
    try:
        returned: JobReturn = ray.get(job)
        return returned
    except ray.exceptions.RayError as error:
        return failed(error)
