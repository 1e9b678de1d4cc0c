"""The importance of each swept key: Optuna's PED-ANOVA over a study made from the runs.

No other module of `results` uses Optuna. It is imported only when `importances` needs it.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from fmnist_sweep.results.series import objective
from fmnist_sweep.results.swept import Axis, axes
from fmnist_sweep.results.tables import Run

# With fewer trials, the comparison of the best quarter with all trials is noise.
FEWEST = 20
BEST = 0.25


def importances(runs: Sequence[Run]) -> dict[str, float]:
    """Return each key's share in what separates the best quarter of the trials from all.

    A trial that was stopped early counts with its last value: those that a pruner or scheduler
    stops belong to the worse ones, and without them few may be left.

    Returns:
        Shares that add up to 1, greatest first. Empty for fewer than two keys other than the seed,
        fewer than 20 trials with a value, several objectives, or trials that are all equally good.
    """
    trained = with_values(runs)
    keys = [axis for axis in axes(trained) if axis.key != trained[0].seed_key]
    values = {objective(run) for run in trained}
    if len(keys) < 2 or len(trained) < FEWEST or len(values) < 2:
        return {}
    if len(runs[0].objective) > 1:
        return {}
    # The import takes half a second.
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
    )

    def distribution(axis: Axis) -> BaseDistribution:
        if axis.kind == "category":
            return CategoricalDistribution(axis.choices)
        numbers = [float(run.params[axis.key]) for run in trained if axis.key in run.params]
        return FloatDistribution(min(numbers), max(numbers), log=axis.kind == "log")

    known = {axis.key: distribution(axis) for axis in keys}
    categories = {axis.key for axis in keys if axis.kind == "category"}

    def trial(run: Run) -> optuna.trial.FrozenTrial:
        params: dict[str, Any] = {
            key: str(run.params[key]) if key in categories else float(run.params[key])
            for key in known
            if key in run.params
        }
        return optuna.trial.create_trial(
            params=params, distributions={key: known[key] for key in params}, value=objective(run)
        )

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(
                direction=optuna.study.StudyDirection[runs[0].direction[0].upper()]
            )
            study.add_trials([trial(run) for run in trained])
            found = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=BEST)
            )
    finally:
        optuna.logging.set_verbosity(level)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def with_values(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that importances are computed from."""
    return [run for run in runs if objective(run) is not None]
