"""A data set that the user's function returns: `data._target_=mypackage.load`."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from fmnist_sweep.base.errors import ConfigError, DataError, first_line
from fmnist_sweep.base.schema import trusted_packages
from fmnist_sweep.task.config import DataConfig
from fmnist_sweep.task.data.arrays import SUFFIXES
from fmnist_sweep.task.data.dataset import Dataset, PartName, from_arrays

REQUIRED = ("function",)


def load(config: DataConfig, parts: Sequence[PartName]) -> Dataset:
    """Call the function and check the arrays or tensors that it returns.

    The function returns a mapping with the names of `dataset.from_arrays`. What it returns for
    testing is not looked at unless that part is asked for.
    """
    target = str(config.function)
    try:
        returned = instantiate(
            {"_target_": target, **(config.arguments or {})},
            _execution_whitelist_=trusted_packages(),
        )
    except InstantiationException as error:
        if "execution whitelist" in " ".join(str(error).split()):
            raise ConfigError(
                f"data._target_={target}: not a trusted target; the environment variable "
                "FMNIST_SWEEP_TRUST=yourpackage.* adds your own"
            ) from None
        raise DataError(f"data._target_={target}: {first_line(error.__cause__ or error)}") from None
    if not isinstance(returned, Mapping):
        raise DataError(
            f"data._target_={target}: must return a mapping with x_train, y_train, ..., not "
            f"{type(returned).__name__}"
        )
    wanted = [f"{letter}_{SUFFIXES[part]}" for part in parts for letter in "xy"]
    arrays = {name: _array(returned[name]) for name in wanted if name in returned}
    where = {name: f"data._target_={target}: {name}" for name in wanted}
    has_test = {"x_test", "y_test"} <= returned.keys()
    return from_arrays(target, target, arrays, where, has_test)


def _array(value: Any) -> np.ndarray:
    """Return an array for an array, tensor or list."""
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def stamp(config: DataConfig, parts: Sequence[PartName]) -> Hashable:
    """Return nothing that changes: the function is called once in a process."""
    return None
