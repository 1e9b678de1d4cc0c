"""Hydra plugin `hydra/launcher=ray`: run each job as a task of a Ray cluster or of a local Ray.

Hydra's own Ray plugin requires a cloudpickle that is too old for joblib. Single runs import this
module too, so it must import little.
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
    """Launcher that runs a batch of jobs as Ray tasks.

    Args:
        init: arguments of `ray.init`.
        remote: resources of each job, as arguments of `ray.remote`.
    """

    def __init__(self, init: DictConfig, remote: DictConfig) -> None:
        self.init: Any = OmegaConf.to_container(init, resolve=True)
        self.remote: Any = OmegaConf.to_container(remote, resolve=True)

    @staticmethod
    def check(settings: Mapping[str, Any]) -> None:
        """Connect to Ray before a sweep begins.

        Raises:
            ConfigError: Ray is not installed or cannot be reached.
        """
        connect(settings["init"])

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra passes before `launch`."""
        self.hydra_setup = config, hydra_context, task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run a batch of jobs. If a job's process dies, the other jobs continue.

        Raises:
            ConfigError: Ray is not installed or cannot be reached.
        """
        ray = connect(self.init)
        run = ray.remote(max_retries=0, **self.remote)(RemoteJob.__call__)
        jobs = [
            run.remote(RemoteJob((number, list(overrides)), *self.hydra_setup))
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
    """Connect to Ray and return its module. A local Ray ends with this process.

    Args:
        arguments: arguments of `ray.init`.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "hydra/launcher=ray: needs the extra ray: pip install 'fmnist-sweep[ray]'"
        ) from None
    if not ray.is_initialized():
        _check_reachable(arguments.get("address"))
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**arguments)
        except (ConnectionError, ValueError) as error:
            text = " ".join(str(error).split())
            raise ConfigError(f"hydra.launcher.init={arguments}: {text}") from None
        signal.signal(signal.SIGTERM, before)
    return ray


def _check_reachable(address: str | None) -> None:
    """Refuse an unreachable address at once: Ray would retry for minutes and print many lines."""
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
