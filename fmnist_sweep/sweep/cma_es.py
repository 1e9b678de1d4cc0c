"""Optuna's CMA-ES for a study that may be somebody else's.

It keeps its state in the study as a pickle, which could name any function to be called.
"""

import io
import pickle
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from fmnist_sweep.base.errors import ConfigError

# All that a state of any of the three is made of.
_ITS_OWN = {
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
    """As Optuna's, from whose states in the study nothing but arrays and numbers is made."""

    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        for trial in reversed(completed_trials):
            key = self._attr_key_optimizer
            kept = {k: v for k, v in trial.system_attrs.items() if k.startswith(key)}
            if kept:
                return _unpickled(bytes.fromhex(self._concat_optimizer_attrs(kept)))
        return None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ITS_OWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _unpickled(state: bytes) -> Any:
    """A sampler's state.

    Raises:
        ConfigError: it is none.
    """
    try:
        return _Unpickler(io.BytesIO(state)).load()
    except Exception as error:  # whatever a torn or forged pickle makes of it
        raise ConfigError(
            f"hydra/sweeper/sampler=cmaes: the study's state of it cannot be read ({error}); "
            "name=another begins a new sweep"
        ) from None
