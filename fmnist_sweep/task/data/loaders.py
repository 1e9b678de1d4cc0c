"""The loaders of data sets by `data.kind`, each imported when it is used."""

from collections.abc import Hashable, Sequence
from importlib import import_module
from typing import Protocol, cast

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.task.config import DataConfig
from fmnist_sweep.task.data.dataset import Dataset, PartName


class Loader(Protocol):
    """A module that loads data sets of one or more kinds."""

    REQUIRED: Sequence[str]  # keys of the section `data` that must be set

    def load(self, config: DataConfig, parts: Sequence[PartName]) -> Dataset:
        """Load and check those of the parts that the data set has; open no other.

        Raises:
            DataError: the data set is missing, damaged or no data set for classification.
        """

    def stamp(self, config: DataConfig, parts: Sequence[PartName]) -> Hashable:
        """Return what changes when the files change."""


_MODULES = {
    "fashion_mnist": "fashion",
    **dict.fromkeys(("mnist", "kmnist", "emnist", "cifar10", "cifar100"), "vision"),
    "arrays": "arrays",
    "images": "image_folder",
    "table": "table",
    "custom": "custom",
}


# The keys that a loader reads; data sets that differ in others are the same.
_KEYS = {"kind", "root", "verify", "split", "path", "target", "function", "arguments"}

_loaded: dict[Hashable, Dataset] = {}  # the data set that was loaded last


def load(config: DataConfig, parts: Sequence[PartName]) -> Dataset:
    """Load a data set; as long as its files do not change, once for all trials of a process.

    Raises:
        ConfigError: a key that this kind of data set needs is missing.
        DataError: see `Loader.load`.
    """
    loader = cast(Loader, import_module(f"fmnist_sweep.task.data.{_MODULES[config.kind]}"))
    for name in loader.REQUIRED:
        if getattr(config, name) is None:
            shown = "_target_" if name == "function" else name
            raise ConfigError(f"data.{shown}: is missing; data={config.kind} needs it")
    key = config.model_dump_json(include=_KEYS), tuple(parts), loader.stamp(config, parts)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = loader.load(config, parts)
    return _loaded[key]
