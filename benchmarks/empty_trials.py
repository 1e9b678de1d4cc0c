"""Run trials that do nothing, to measure a sweep's overhead.

This is a separate program, so that its trials import no more than they need. With
`hydra.sweeper._target_=benchmarks.empty_trials.Bare` only Hydra's launcher runs: it composes each
trial's configuration, creates its folder and sets up its log.
"""

from typing import Any

import hydra
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fmnist_sweep.sweep import sweeps
from fmnist_sweep.task.cli import run_hydra_command
from fmnist_sweep.task.config import conf_folder
from fmnist_sweep.task.fashion import FashionTask

TRIALS = 500


class Bare(Sweeper):
    """Sweeper that launches `seed=0`, `seed=1`, ... one by one, up to `hydra.sweeper.n_trials`."""

    def __init__(self, n_trials: int, **_: Any) -> None:
        self.n_trials = n_trials

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        assert self.launcher is not None
        for number in range(self.n_trials):
            self.launcher.launch([[*arguments, f"seed={number}"]], initial_job_idx=number)


Plugins.instance().register(Bare)


@hydra.main(
    config_path=conf_folder(),
    config_name="config",
    execution_whitelist=("fmnist_sweep.*", "benchmarks.*"),
)
@sweeps(FashionTask())
def task(config: DictConfig) -> float:
    """Return the seed as a fake accuracy."""
    return float(config.seed) / TRIALS


def main() -> None:
    """Run the command. Import this function, so that Hydra finds `Bare` by its module's name."""
    run_hydra_command(task)
