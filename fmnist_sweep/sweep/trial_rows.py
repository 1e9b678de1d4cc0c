"""Read and write many rows of trials at once, where Optuna takes a transaction or more for each.

On SQLite and servers the functions use the tables of `optuna.storages.RDBStorage`, as Optuna has no
public call for several trials. On Optuna's gRPC proxy they call its public methods.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial
from sqlalchemy import column

from fmnist_sweep.sweep.database import Address, load, read_trial, storage
from fmnist_sweep.sweep.ranks import VALUES_BY_STEP


@dataclass(frozen=True)
class TrialStatus:
    """A trial's id, state, run folder and recorded steps.

    Attributes:
        id: the trial's id in the database.
        state: its state.
        run: the name of its run folder; None if it has none.
        steps: the steps for which it has values.
    """

    id: int
    state: TrialState
    run: str | None
    steps: Collection[int]


_STATUS = """
    SELECT trials.trial_id, state, value_json FROM trials
    LEFT JOIN trial_user_attributes AS attribute
        ON attribute.trial_id = trials.trial_id AND attribute.key = 'run'
    WHERE study_id = :study AND number = :number
"""
_STEPS = "SELECT step FROM trial_intermediate_values WHERE trial_id = :trial"


def read_status(address: Address, number: int) -> TrialStatus:
    """Return the status of a trial, by its number.

    Raises:
        KeyError: the study has no such trial.
    """
    backend, study = storage(address.url), load(address)
    if not isinstance(backend, RDBStorage):
        trial = read_trial(address, number)
        run = trial.user_attrs.get("run")
        return TrialStatus(trial._trial_id, trial.state, run, set(trial.intermediate_values))
    with backend.engine.begin() as connection:
        wanted = {"study": study._study_id, "number": number}
        row = connection.execute(sqlalchemy.text(_STATUS), wanted).one_or_none()
        if row is None:
            raise KeyError(f"study {address.name} has no trial {number}")
        trial_id, state, run = row
        steps = connection.execute(sqlalchemy.text(_STEPS), {"trial": trial_id}).scalars().all()
    return TrialStatus(trial_id, TrialState[state], json.loads(run) if run else None, set(steps))


def count(address: Address) -> tuple[int, int]:
    """Return the number of trials in a study, and how many of them are waiting."""
    backend, study = storage(address.url), load(address)
    if isinstance(backend, RDBStorage):  # Optuna reads all trials to count them
        query = "SELECT state, count(*) FROM trials WHERE study_id = :study GROUP BY state"
        with backend.engine.begin() as connection:
            rows = connection.execute(sqlalchemy.text(query), {"study": study._study_id}).all()
        counts = {str(state): number for state, number in rows}
        return sum(counts.values()), counts.get("WAITING", 0)
    states = [trial.state for trial in study.get_trials(deepcopy=False)]
    return len(states), states.count(TrialState.WAITING)


_STUDY = sqlalchemy.table("studies", column("study_id"))
# A trial's number is the count of the trials before it, as in Optuna.
_INSERT_TRIAL = sqlalchemy.text(
    """
    INSERT INTO trials (number, study_id, state, datetime_start)
    SELECT count(*), :study, 'RUNNING', :now FROM trials WHERE study_id = :study
    """
).bindparams(sqlalchemy.bindparam("now", type_=sqlalchemy.DateTime))
_LAST_TRIALS = """
    SELECT number, trial_id FROM trials WHERE study_id = :study ORDER BY number DESC LIMIT :count
"""
_INSERT_PARAM = """
    INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json)
    VALUES (:trial, :name, :value, :distribution)
"""


def begin(
    address: Address,
    points: Sequence[Mapping[str, Any]],
    distributions: Mapping[str, BaseDistribution],
) -> dict[int, int]:
    """Create running trials.

    Args:
        points: the parameters of each, by name.
        distributions: those of the parameters, by name.

    Returns:
        The trials' ids by number, in the order of the points.
    """
    backend, study = storage(address.url), load(address)._study_id
    if not isinstance(backend, RDBStorage):
        ids = [
            backend.create_new_trial(
                study,
                template_trial=create_trial(
                    state=TrialState.RUNNING, params=dict(point), distributions=dict(distributions)
                ),
            )
            for point in points
        ]
        return {backend.get_trial_number_from_id(trial_id): trial_id for trial_id in ids}
    texts = {name: distribution_to_json(one) for name, one in distributions.items()}
    with backend.engine.begin() as connection:
        # Optuna locks this row too while it adds a trial; on SQLite the first insertion locks.
        connection.execute(
            sqlalchemy.select(_STUDY).where(_STUDY.c.study_id == study).with_for_update()
        )
        now = datetime.now()
        for _ in points:
            connection.execute(_INSERT_TRIAL, {"study": study, "now": now})
        wanted = {"study": study, "count": len(points)}
        rows = connection.execute(sqlalchemy.text(_LAST_TRIALS), wanted).all()
        ids_by_number = {number: trial_id for number, trial_id in reversed(rows)}
        params = [
            {
                "trial": trial_id,
                "name": name,
                "value": distributions[name].to_internal_repr(value),
                "distribution": texts[name],
            }
            for trial_id, point in zip(ids_by_number.values(), points)
            for name, value in point.items()
        ]
        if params:
            connection.execute(sqlalchemy.text(_INSERT_PARAM), params)
    return ids_by_number


def set_attributes(url: str, attributes: Mapping[int, Mapping[str, Any]]) -> None:
    """Set user attributes of unfinished trials.

    Args:
        url: see `storage`.
        attributes: the values by trial id and name.
    """
    backend = storage(url)
    rows = [
        {"trial": trial_id, "key": key, "value": value}
        for trial_id, values in attributes.items()
        for key, value in values.items()
    ]
    if isinstance(backend, RDBStorage):
        delete = "DELETE FROM trial_user_attributes WHERE trial_id = :trial AND key = :key"
        insert = (
            "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
            "VALUES (:trial, :key, :value)"
        )
        texts = [{**row, "value": json.dumps(row["value"])} for row in rows]
        with backend.engine.begin() as connection:
            connection.execute(sqlalchemy.text(delete), texts)
            connection.execute(sqlalchemy.text(insert), texts)
        return
    for row in rows:
        backend.set_trial_user_attr(row["trial"], row["key"], row["value"])


_INSERT_STEP = """
    INSERT INTO trial_intermediate_values
        (trial_id, step, intermediate_value, intermediate_value_type)
    VALUES (:trial, :step, :value, 'FINITE')
"""
_INSERT_VALUE = """
    INSERT INTO trial_values (trial_id, objective, value, value_type)
    VALUES (:trial, :objective, :value, 'FINITE')
"""
_END = sqlalchemy.text(
    """
    UPDATE trials SET state = 'COMPLETE', datetime_complete = :now
    WHERE trial_id = :trial AND state = 'RUNNING'
    """
).bindparams(sqlalchemy.bindparam("now", type_=sqlalchemy.DateTime))


def complete(
    url: str, trial: TrialStatus, values: Sequence[float], steps: Mapping[int, Sequence[float]]
) -> None:
    """End a running trial with its values, unless it has ended already.

    Args:
        url: see `storage`.
        trial: the trial; steps that it has already are left as they are.
        values: one for each objective, none NaN.
        steps: the objectives' values at further steps.
    """
    if len(values) > 1 and steps:
        set_steps(url, trial, steps)
        steps = {}
    backend = storage(url)
    numbers = [*values, *(value for (value,) in steps.values())]
    if not isinstance(backend, RDBStorage) or not all(map(math.isfinite, numbers)):
        set_steps(url, trial, steps)
        backend.set_trial_state_values(trial.id, TrialState.COMPLETE, values)
        return
    with backend.engine.begin() as connection:
        wanted = {"trial": trial.id, "now": datetime.now()}
        if connection.execute(_END, wanted).rowcount == 0:
            return
        # A trial whose state another program has set back may have values.
        delete = sqlalchemy.text("DELETE FROM trial_values WHERE trial_id = :trial")
        connection.execute(delete, {"trial": trial.id})
        rows = [
            {"trial": trial.id, "objective": i, "value": value} for i, value in enumerate(values)
        ]
        connection.execute(sqlalchemy.text(_INSERT_VALUE), rows)
        _insert_steps(connection, trial, steps)


def set_steps(url: str, trial: TrialStatus, steps: Mapping[int, Sequence[float]]) -> None:
    """Set the values of many steps of a running trial.

    Args:
        url: see `storage`.
        trial: the trial; steps that it has already are left as they are.
        steps: the objectives' values by step.
    """
    if any(len(values) > 1 for values in steps.values()):
        replace_steps(url, trial, steps)
        return
    backend = storage(url)
    if isinstance(backend, RDBStorage) and all(math.isfinite(value) for (value,) in steps.values()):
        with backend.engine.begin() as connection:
            _insert_steps(connection, trial, steps)
        return
    replace_steps(url, trial, {k: value for k, value in steps.items() if k not in trial.steps})


def replace_steps(url: str, trial: TrialStatus, steps: Mapping[int, Sequence[float]]) -> None:
    """Set the values of steps of a running trial, also of those that it has already.

    Optuna keeps one value for each step. Those of several objectives are an attribute.
    """
    backend, several = storage(url), {}
    for step, values in steps.items():
        if len(values) == 1:
            backend.set_trial_intermediate_value(trial.id, step, values[0])
        else:
            several[str(step)] = list(values)
    if several:
        before = backend.get_trial(trial.id).user_attrs.get(VALUES_BY_STEP) or {}
        backend.set_trial_user_attr(trial.id, VALUES_BY_STEP, {**before, **several})


def _insert_steps(
    connection: sqlalchemy.Connection, trial: TrialStatus, steps: Mapping[int, Sequence[float]]
) -> None:
    rows = [
        {"trial": trial.id, "step": step, "value": value}
        for step, (value,) in steps.items()
        if step not in trial.steps
    ]
    if rows:
        connection.execute(sqlalchemy.text(_INSERT_STEP), rows)
