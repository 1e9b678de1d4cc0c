"""Hydra's plugin `hydra/sweeper=study`. Light to import: single runs load it too."""

from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Turns a `-m` command line into a study: a grid or an Optuna search.

    Its settings are the keys of conf/hydra/sweeper/study.yaml.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's hook before `sweep`."""
        self.surroundings = config, hydra_context, task_function

    def sweep(self, arguments: list[str]) -> None:
        """Runs the sweep to its end; see `begin.sweep`."""
        from fmnist_sweep.base import command
        from fmnist_sweep.sweep import begin

        # Hydra would show a user's mistake with its traceback.
        command.run(lambda: begin.sweep(arguments, self.settings, *self.surroundings))
