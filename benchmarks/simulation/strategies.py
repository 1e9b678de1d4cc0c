"""Search strategies by name: `SCHEDULER/SAMPLER`, such as `median/tpe-epochs`."""

from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from benchmarks.simulation.freeze_thaw import FreezeThaw
from benchmarks.simulation.samplers import Cheap, Random, Tpe
from benchmarks.simulation.schedulers import Asha, Full, KeepBest, Pruned
from benchmarks.simulation.search import Clock, Curves, Sampler, Scheduler, Search
from fmnist_sweep.base.errors import ConfigError

Make = Callable[[Search, np.random.Generator], Scheduler]


def _pruned(make: Callable[[int], optuna.pruners.BasePruner]) -> Make:
    """Return a factory of schedulers with a pruner, which is made for the curves' epochs."""
    return lambda search, rng: Pruned(
        search, make(search.curves.epochs), name=f"study {rng.integers(2**31)}"
    )


# The pruners have the settings of fmnist_sweep/sweep/conf/hydra/sweeper/pruner, but Hyperband is
# told the epochs and does not wait for the first complete trial.
SCHEDULERS: dict[str, Make] = {
    "full": lambda search, rng: Full(search),
    "keep-best": lambda search, rng: KeepBest(search),
    "median": _pruned(
        lambda epochs: optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    ),
    "percentile": _pruned(
        lambda epochs: optuna.pruners.PercentilePruner(25.0, n_startup_trials=5, n_warmup_steps=1)
    ),
    "halving": _pruned(
        lambda epochs: optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)
    ),
    "hyperband": _pruned(
        lambda epochs: optuna.pruners.HyperbandPruner(
            min_resource=2, max_resource=epochs, reduction_factor=3
        )
    ),
    # With the first rung of conf/search/mlp.yaml.
    "asha": lambda search, rng: Asha(search, least=2),
    "asha-gain": lambda search, rng: Asha(search, least=2, by_gain=True),
    "freeze-thaw": lambda search, rng: FreezeThaw(search),
}


def _tpe(curves: Curves, rng: np.random.Generator, **more: Any) -> Tpe:
    """Return TPE with Optuna 5's defaults, which are multivariate and a constant liar."""
    return Tpe(curves, TPESampler(seed=int(rng.integers(2**31))), **more)


def _stock(curves: Curves, rng: np.random.Generator, **more: Any) -> Tpe:
    """Return TPE with the settings of hydra-optuna-sweeper, the default of sweeps."""
    sampler = TPESampler(
        seed=int(rng.integers(2**31)), multivariate=False, group=False, constant_liar=False
    )
    return Tpe(curves, sampler, **more)


SAMPLERS: dict[str, Callable[[Curves, np.random.Generator], Sampler]] = {
    "random": Random,
    "random-cheap": lambda curves, rng: Cheap(Random(curves, rng), curves),
    "random-epochs": lambda curves, rng: Random(curves, rng, epochs=True),
    "tpe": _tpe,
    "tpe-cheap": lambda curves, rng: Cheap(_tpe(curves, rng), curves),
    "tpe-epochs": lambda curves, rng: _tpe(curves, rng, epochs=True),
    "tpe-paused-complete": lambda curves, rng: _tpe(curves, rng, paused=TrialState.COMPLETE),
    "stock": _stock,
    "stock-epochs": lambda curves, rng: _stock(curves, rng, epochs=True),
    "stock-paused-complete": lambda curves, rng: _stock(curves, rng, paused=TrialState.COMPLETE),
}

DEFAULT = (
    "full/random", "full/tpe", "full/stock", "full/random-epochs", "full/stock-epochs",
    "keep-best/random", "keep-best/tpe",
    "median/random", "median/tpe", "median/stock", "median/stock-epochs",
    "percentile/random", "percentile/tpe", "halving/random", "halving/tpe",
    "hyperband/random", "hyperband/tpe",
    "asha/random", "asha/random-cheap", "asha/tpe", "asha/tpe-paused-complete",
    "asha/stock", "asha/stock-paused-complete",
    "asha-gain/random", "asha-gain/random-cheap", "asha-gain/tpe", "asha-gain/tpe-cheap",
    "freeze-thaw/random", "freeze-thaw/random-cheap", "freeze-thaw/tpe",
)  # fmt: skip


def check(name: str) -> None:
    """Check a strategy's name.

    Raises:
        ConfigError: there is no such strategy.
    """
    scheduler, _, sampler = name.partition("/")
    if scheduler not in SCHEDULERS or sampler not in SAMPLERS:
        raise ConfigError(
            f"{name}: no such strategy; give one of {', '.join(SCHEDULERS)}, a slash and one of "
            f"{', '.join(SAMPLERS)}"
        )


def make(name: str, curves: Curves, seed: int, clock: Clock) -> Scheduler:
    """Make a search by its strategy's name, which has been checked.

    Args:
        name: a scheduler and a sampler, such as asha/tpe.
        curves: what it searches.
        seed: of everything that it draws.
        clock: what takes time besides epochs.
    """
    scheduler, _, sampler = name.partition("/")
    rng = np.random.default_rng(seed)
    search = Search(curves, SAMPLERS[sampler](curves, rng), rng, clock)
    return SCHEDULERS[scheduler](search, rng)
