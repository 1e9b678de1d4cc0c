"""What Hydra finds of this package in every application: entry points of `hydra.plugins`.

Each is loaded whenever a Hydra application starts, and so is light to import.
"""

from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SweepSearchPath(SearchPathPlugin):
    """Adds `hydra/sweeper=study`, its pruners and this package's launchers to every application."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra's hook."""
        search_path.append("fmnist_sweep", "pkg://fmnist_sweep.sweep.conf")


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
