"""Several objectives as one: the rank of each trial among the trials at the same step.

Pruners and schedulers compare numbers. Optuna keeps no intermediate values in a study with several
objectives. There, each trial has its values by step in an attribute, and is compared by its rank:
trials that no other dominates come first, then those that only these dominate, and so on. Within
such a front, trials with few neighbours come first (NSGA-II, Deb et al., 2002).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

# The attribute of a trial in the study: the objectives' values by step.
VALUES_BY_STEP = "values_by_step"


def values_by_step(trial: FrozenTrial) -> dict[int, list[float]]:
    """Return the values of several objectives by step, oldest first."""
    found: Mapping[str, list[float]] = trial.user_attrs.get(VALUES_BY_STEP) or {}
    return {int(step): found[step] for step in sorted(found, key=int)}


def last_values(trial: FrozenTrial) -> list[float] | None:
    """Return the values at a trial's last step; None if there are none or one is not finite."""
    values = list(values_by_step(trial).values())
    return values[-1] if values and all(map(math.isfinite, values[-1])) else None


def with_ranks(
    trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]
) -> tuple[list[FrozenTrial], StudyDirection]:
    """Return trials with one intermediate value for each step, and its direction.

    With a single objective these are the trials themselves. Otherwise the values are ranks from 0,
    the best, to 1.
    """
    if len(directions) == 1:
        return list(trials), directions[0]
    signs = [1 if one == StudyDirection.MAXIMIZE else -1 for one in directions]
    histories = [values_by_step(trial) for trial in trials]
    found: list[dict[int, float]] = [{} for _ in trials]
    for step in sorted({step for history in histories for step in history}):
        there = [i for i, history in enumerate(histories) if step in history]
        points = np.array([histories[i][step] for i in there]) * signs
        for rank, i in enumerate(order(np.nan_to_num(points, nan=-np.inf))):
            found[there[i]][step] = rank / max(1, len(there) - 1)
    ranked = []
    for trial, ranks in zip(trials, found):
        made = create_trial(
            state=TrialState.RUNNING, user_attrs=trial.user_attrs, intermediate_values=ranks
        )
        made.number, made.state = trial.number, trial.state
        ranked.append(made)
    return ranked, StudyDirection.MINIMIZE


def one_objective_study(trials: Sequence[FrozenTrial], direction: StudyDirection) -> optuna.Study:
    """Return a study in memory of those trials that have ended, for a pruner to look at."""
    study = optuna.create_study(direction=direction)
    study.add_trials(
        create_trial(state=trial.state, value=0.0, intermediate_values=trial.intermediate_values)
        for trial in trials
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    )
    return study


def order(points: np.ndarray) -> list[int]:
    """Return the indices of points, best first.

    Args:
        points: [n, objectives], each to be maximized; -inf for a value that is missing.
    """
    # dominates[i, j]: i is nowhere worse than j, and somewhere better.
    no_worse: np.ndarray = np.all(points[:, None] >= points[None], axis=-1)
    dominates = no_worse & ~no_worse.T
    left, ordered = set(range(len(points))), []
    while left:
        rows = sorted(left)
        front = [i for i in rows if not dominates[rows, i].any()]
        distances = _crowding_distances(points[front])
        ordered += [front[k] for k in np.argsort(-distances, kind="stable")]
        left -= set(front)
    return ordered


def _crowding_distances(points: np.ndarray) -> np.ndarray:
    """Return how far the neighbours of each point are in a front; infinite at its ends."""
    distances = np.zeros(len(points))
    for values in points.T:
        by_value = np.argsort(values, kind="stable")
        ordered = values[by_value]
        width = ordered[-1] - ordered[0]
        if not 0 < width < math.inf:
            continue
        distances[by_value[[0, -1]]] = math.inf
        distances[by_value[1:-1]] += (ordered[2:] - ordered[:-2]) / width
    return distances
