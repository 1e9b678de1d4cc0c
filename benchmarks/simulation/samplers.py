"""Choose configurations of a table of curves: at random, or by Optuna's TPE."""

from collections.abc import Container, Sequence

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from benchmarks.simulation.search import Curves, Floats, Sampler, Trial

LEAST_EPOCHS = 10  # of a trial whose epochs are searched too, as in conf/search/mlp.yaml
# The space of conf/search/curves.yaml.
SPACE: dict[str, BaseDistribution] = {
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "batch_size": CategoricalDistribution((16, 32, 64, 128)),
    "width": IntDistribution(64, 512, step=64),
}
# Of learning rate, batch size and width in the distance to a suggestion: another learning rate is
# better than another batch size or width.
WEIGHTS = np.array([1.0, 10.0, 10.0])


class Random(Sampler):
    """Draws configurations of the table, which are themselves random.

    Args:
        curves: the table.
        rng: draws.
        epochs: whether each trial's epochs are drawn too.
    """

    def __init__(self, curves: Curves, rng: np.random.Generator, epochs: bool = False) -> None:
        self.curves, self.rng, self.epochs = curves, rng, epochs

    def next(self, trials: Sequence[Trial]) -> tuple[int, int] | None:
        """Draw a configuration that no trial has."""
        left = unused(self.curves, trials)
        if not left.any():
            return None
        least = LEAST_EPOCHS if self.epochs else self.curves.epochs
        limit = int(self.rng.integers(least, self.curves.epochs + 1))
        return int(self.rng.choice(np.flatnonzero(left))), limit


class _Entries(optuna.storages.InMemoryStorage):
    """A study's storage that shows given entries instead of its own trials.

    A finished trial of a study cannot go on, but a paused one does.
    """

    entries: Sequence[FrozenTrial] = ()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the entries in given states."""
        return [entry for entry in self.entries if states is None or entry.state in states]


class Tpe(Sampler):
    """Takes the configuration nearest to a suggestion of Optuna's TPE.

    The study that TPE sees holds the parameters of the configurations that were taken. A trial's
    value is its best accuracy so far. Running trials are running, and stopped ones pruned.

    Args:
        curves: the table.
        sampler: suggests.
        epochs: whether the sampler suggests each trial's epochs too.
        paused: how the study shows paused trials, as pruned or as complete.
    """

    def __init__(
        self,
        curves: Curves,
        sampler: optuna.samplers.BaseSampler,
        epochs: bool = False,
        paused: TrialState = TrialState.PRUNED,
    ) -> None:
        self.curves, self.epochs = curves, epochs
        self.space = dict(SPACE)
        if epochs:
            self.space["epochs"] = IntDistribution(LEAST_EPOCHS, curves.epochs)
        self.states = {
            "running": TrialState.RUNNING,
            "paused": paused,
            "stopped": TrialState.PRUNED,
            "complete": TrialState.COMPLETE,
        }
        self.places = _places(curves.params)
        self.storage = _Entries()
        self.study = optuna.create_study(
            direction="maximize", sampler=sampler, storage=self.storage
        )
        # By trial, its state and epochs when the entry was made.
        self.shown: dict[Trial, tuple[str, int, FrozenTrial]] = {}

    def next(self, trials: Sequence[Trial]) -> tuple[int, int] | None:
        """Ask TPE for a suggestion, and return the nearest configuration that no trial has."""
        left = unused(self.curves, trials)
        if not left.any():
            return None
        self.storage.entries = [self._entry(*numbered) for numbered in enumerate(trials)]
        suggested = self.study.ask(self.space).params
        point = _places(np.array([[suggested[name] for name in SPACE]]))
        distances = np.where(left, _distances(self.places, point), np.inf)
        return int(distances.argmin()), int(suggested.get("epochs", self.curves.epochs))

    def _entry(self, number: int, trial: Trial) -> FrozenTrial:
        """Return the study's entry of a trial."""
        state, epochs, entry = self.shown.get(trial, ("", 0, None))
        if entry is not None and (state, epochs) == (trial.state, trial.epochs):
            return entry
        lr, batch, width = self.curves.params[trial.config]
        params = {"lr": float(lr), "batch_size": int(batch), "width": int(width)}
        shown_as = self.states[trial.state]
        entry = optuna.trial.create_trial(
            state=shown_as,
            params={**params, **({"epochs": trial.limit} if self.epochs else {})},
            distributions=self.space,
            value=trial.best if shown_as == TrialState.COMPLETE else None,
            intermediate_values={trial.epochs: trial.best} if trial.epochs else {},
        )
        entry.number = number
        self.shown[trial] = trial.state, trial.epochs, entry
        return entry


class Cheap(Sampler):
    """Draws several configurations and takes the one whose epochs take the fewest seconds.

    Args:
        sampler: draws.
        curves: the table.
        draws: the number of draws for each trial.
    """

    def __init__(self, sampler: Sampler, curves: Curves, draws: int = 3) -> None:
        self.sampler, self.curves, self.draws = sampler, curves, draws

    def next(self, trials: Sequence[Trial]) -> tuple[int, int] | None:
        """Choose the cheapest of several draws."""
        drawn = (self.sampler.next(trials) for _ in range(self.draws))
        found = [one for one in drawn if one is not None]
        return min(found, key=lambda one: float(self.curves.seconds[one[0]]), default=None)


def unused(curves: Curves, trials: Sequence[Trial]) -> npt.NDArray[np.bool_]:
    """Return which configurations no trial has [configurations]."""
    left = np.ones(len(curves.params), bool)
    left[[trial.config for trial in trials]] = False
    return left


def nearest(params: Floats, lr: float, batch_size: int, width: int) -> int:
    """Return the place of the configuration that is nearest to given values.

    Args:
        params: learning rate, batch size and width [configurations, 3].
        lr, batch_size, width: the values.
    """
    point = _places(np.array([[lr, batch_size, width]]))
    return int(_distances(_places(params), point).argmin())


def _distances(places: Floats, point: Floats) -> Floats:
    """Return squared distances from a point [1, 3] of the unit cube [configurations]."""
    distances: Floats = (WEIGHTS * (places - point) ** 2).sum(1)
    return distances


def _places(params: Floats) -> Floats:
    """Return configurations [n, 3] as points of the unit cube that the space fills."""
    lr, batch, width = params.T.astype(float)
    return np.stack([np.log10(lr / 1e-4) / 2, np.log2(batch / 16) / 3, (width - 64) / 448], 1)
