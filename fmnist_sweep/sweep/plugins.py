"""What Hydra finds of this package in every application: entry points of `hydra.plugins`.

Each is loaded whenever a Hydra application starts, and so is light to import.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class SweepSearchPath(SearchPathPlugin):
    """Adds `hydra/sweeper=study`, its pruners and this package's launchers to every application."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra's hook."""
        search_path.append("fmnist_sweep", "pkg://fmnist_sweep.sweep.conf")
