"""Optuna's CMA-ES for a study that may come from a stranger.

The sampler keeps its state in the study as a pickle. A pickle can call any function that it names.
"""

import io
import pickle
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from fmnist_sweep.base.errors import ConfigError

# The classes and functions that a state of any of the three optimizers names.
_ALLOWED = {
    *(("cmaes._cma", "CMA"), ("cmaes._sepcma", "SepCMA"), ("cmaes._cmawm", "CMAwM")),
    *(("numpy", "ndarray"), ("numpy", "dtype")),
    *(
        (f"numpy.{core}.{module}", function)
        for core in ("core", "_core")
        for module, function in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}


class CmaEsSampler(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES sampler that restores only arrays and numbers from a study."""

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        for trial in reversed(completed_trials):
            key = self._attr_key_optimizer
            parts = {k: v for k, v in trial.system_attrs.items() if k.startswith(key)}
            if parts:
                return _unpickled(bytes.fromhex(self._concat_optimizer_attrs(parts)))
        return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _unpickled(state: bytes) -> Any:
    """Return the sampler's state.

    Raises:
        ConfigError: the pickle is torn, or names anything but arrays and numbers.
    """
    try:
        return _Unpickler(io.BytesIO(state)).load()
    except Exception as error:  # a torn or forged pickle can raise anything
        raise ConfigError(
            f"hydra/sweeper/sampler=cmaes: the study's state of it cannot be read ({error}); "
            "name=another begins a new sweep"
        ) from None
