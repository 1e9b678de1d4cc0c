"""Read and write many rows of trials at once, where Optuna takes a transaction or more for each.

On SQLite and servers the functions use the tables of `optuna.storages.RDBStorage`, as Optuna has no
public call for several trials. On Optuna's gRPC proxy they call its public methods.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from fmnist_sweep.sweep.database import Address, load, read_trial, storage


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


def read_numbers(url: str, trial_ids: Sequence[int]) -> list[int]:
    """Return the numbers of trials, given by their ids."""
    backend = storage(url)
    if not isinstance(backend, RDBStorage):
        return [backend.get_trial_number_from_id(trial_id) for trial_id in trial_ids]
    query = sqlalchemy.text(
        "SELECT trial_id, number FROM trials WHERE trial_id IN :ids"
    ).bindparams(sqlalchemy.bindparam("ids", expanding=True))
    with backend.engine.begin() as connection:
        rows = connection.execute(query, {"ids": list(trial_ids)}).all()
    numbers = {trial_id: number for trial_id, number in rows}
    return [numbers[trial_id] for trial_id in trial_ids]


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


def set_steps(url: str, trial: TrialStatus, steps: Mapping[int, float]) -> None:
    """Set the values of many steps of a running trial.

    Args:
        url: see `storage`.
        trial: the trial; steps that it has already are left as they are.
        steps: the values by step.
    """
    backend = storage(url)
    new = {step: value for step, value in steps.items() if step not in trial.steps}
    if new and isinstance(backend, RDBStorage) and all(map(math.isfinite, new.values())):
        rows = [{"trial": trial.id, "step": step, "value": value} for step, value in new.items()]
        with backend.engine.begin() as connection:
            connection.execute(sqlalchemy.text(_INSERT_STEP), rows)
        return
    for step, value in new.items():
        backend.set_trial_intermediate_value(trial.id, step, value)
