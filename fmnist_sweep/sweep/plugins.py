"""Hydra plugins that every application finds through the entry points `hydra.plugins`.

Every Hydra application imports this module when it starts, so it must import little.
"""

import time
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import get_class
from omegaconf import DictConfig

from fmnist_sweep.base import command
from fmnist_sweep.sweep.task import task_of


class SweepSearchPath(SearchPathPlugin):
    """Search path plugin that adds `hydra/sweeper=study`, its pruners and the launchers."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the package's configuration folder to the search path."""
        search_path.append("fmnist_sweep", "pkg://fmnist_sweep.sweep.conf")


class StudySweeper(Sweeper):
    """Sweeper that runs a `-m` command line as a study: a grid or an Optuna search.

    Settings are the keys of conf/hydra/sweeper/study.yaml.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.started = time.time()

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra passes before `sweep`."""
        self.hydra_setup = config, hydra_context, task_function

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep to its end; see `begin.sweep`."""
        # Hydra would print a traceback for a user's mistake.
        command.run(lambda: self._sweep(arguments))

    def _sweep(self, arguments: list[str]) -> None:
        config, _, function = self.hydra_setup
        launcher = get_class(config.hydra.launcher._target_)
        if warm_up := getattr(launcher, "warm_up", None):
            warm_up(task_of(function))
        with command.imports():
            from fmnist_sweep.sweep import begin  # takes a second, in which the warm-up proceeds

        begin.sweep(arguments, self.settings, *self.hydra_setup, self.started)
