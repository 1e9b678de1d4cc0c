"""This package's plugins, made known to Hydra. Light to import: single runs load it too."""

from hydra.core.plugins import Plugins

from fmnist_sweep.sweep.launcher import StackedLauncher
from fmnist_sweep.sweep.ray_launcher import RayLauncher
from fmnist_sweep.sweep.sweeper import StudySweeper


def register() -> None:
    """To be called before Hydra composes a configuration."""
    for plugin in (StudySweeper, StackedLauncher, RayLauncher):
        Plugins.instance().register(plugin)
