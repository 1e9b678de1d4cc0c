"""Results of earlier sweeps from which a search's sampler learns, `hydra.sweeper.warm_start`."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, create_trial

from fmnist_sweep.base.errors import CompareError, ConfigError
from fmnist_sweep.results.compare import reading
from fmnist_sweep.results.compare.sweep_table import DATA, SweepTable
from fmnist_sweep.results.keys import is_below
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space, is_inside
from fmnist_sweep.sweep.task import FINGERPRINT, Task

KEY = "hydra.sweeper.warm_start"
SHOWN = 5  # keys in a message
_NO_VALUE = object()


def check(settings: Settings, space: Space) -> None:
    """Refuse a warm start of a sweep that cannot use one.

    Raises:
        ConfigError: one line with the reason.
    """
    if not settings.warm_start:
        return
    if space.is_grid:
        raise ConfigError(f"{KEY}: a grid tries all of its points, whatever is known before")
    if settings.custom_search_space or len(settings.objective) > 1:
        raise ConfigError(f"{KEY}: needs a single objective and no custom_search_space")
    if not settings.learns_from_any_study:
        sampler = str(settings.sampler["_target_"]).rpartition(".")[2]
        raise ConfigError(f"{KEY}: informs hydra/sweeper/sampler=tpe and gp, not {sampler}")


def read(settings: Settings, space: Space, folder: Path, task: Task) -> list[FrozenTrial]:
    """Return the complete trials of earlier sweeps that lie in this sweep's space.

    Print a line for each sweep: how many of its results fit, and what does not.

    Args:
        folder: the folder of this sweep.
        task: knows which keys are those of the data, and which change no result.

    Raises:
        ConfigError: a sweep is missing or torn, is this one, or has another objective or data.
    """
    trials = []
    for text in settings.warm_start:
        path = Path(text)
        table = _table(path, settings, folder)
        differing = _differing(table, space, task.free_keys)
        if key := next((key for key in differing if is_below(key, task.data_keys)), None):
            raise ConfigError(
                f"{KEY}={path}: was run on other data: {key} is {table.settings[key]} there and "
                f"{space.base[key]} here"
            )
        there, here = str(table.environment.get(DATA, "")), str(space.base.get(FINGERPRINT, ""))
        if there and here and here[:12] not in there:
            raise ConfigError(f"{KEY}={path}: was run on other data: {there}, and {here[:12]} here")
        points, outside = _points(table, space)
        trials += [
            create_trial(params=point, distributions=space.distributions, value=value)
            for point, value in points
        ]
        line = f"Warm start from {path}: {len(points)} of {len(table.rows)} results"
        if outside:
            line += "; left out by " + ", ".join(f"{key} ({n})" for key, n in outside.items())
        if differing:
            more = ", ..." if len(differing) > SHOWN else ""
            line += f"; run with other {', '.join(differing[:SHOWN])}{more}"
        print(line, file=sys.stderr)
    return trials


def _table(path: Path, settings: Settings, folder: Path) -> SweepTable:
    if path.resolve() in (folder.resolve(), folder.resolve() / "sweep.csv"):
        raise ConfigError(f"{KEY}={path}: is this sweep itself")
    try:
        (table,) = reading.read([path], None)
    except CompareError as error:
        raise ConfigError(f"{KEY}: {error}") from None
    wanted = f"{settings.direction[0]} {settings.objective[0]}"
    found = f"{'maximize' if table.maximize else 'minimize'} {table.objective}"
    if found != wanted:
        raise ConfigError(f"{KEY}={path}: was to {found}, this sweep is to {wanted}")
    return table


def _differing(table: SweepTable, space: Space, free_keys: Sequence[str]) -> list[str]:
    """Return the keys that neither sweep varies and that differ; none without run folders."""
    return [
        key
        for key, value in space.base.items()
        if key in table.settings
        and key not in table.keys
        and not is_below(key, free_keys)
        and table.settings[key] != value
    ]


def _points(
    table: SweepTable, space: Space
) -> tuple[list[tuple[dict[str, Any], float]], Mapping[str, int]]:
    """Return the points in the space with their values, and how many rows each key left out."""
    points, outside = [], Counter[str]()
    for _, row in table.rows.iterrows():
        if row["state"] != "COMPLETE":
            outside[f"state {row['state']}"] += 1
            continue
        values = {
            key: _as_value(table.setting(key, row), distribution)
            for key, distribution in space.distributions.items()
        }
        wrong = [key for key, value in values.items() if value is _NO_VALUE]
        if wrong:
            outside[wrong[0]] += 1
        else:
            points.append((values, float(row["value"])))
    return points, outside


def _as_value(given: Any, distribution: BaseDistribution) -> Any:
    """Return a table's value as one of the distribution's; `_NO_VALUE` if it is none."""
    if isinstance(
        distribution, CategoricalDistribution
    ):  # tables hold text where columns are mixed
        texts = {_text(choice): choice for choice in distribution.choices}
        return texts.get(_text(given), _NO_VALUE)
    try:
        number = float(given)
    except (TypeError, ValueError):
        return _NO_VALUE
    value = int(number) if isinstance(distribution, IntDistribution) else number
    return value if value == number and is_inside(value, distribution) else _NO_VALUE


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool | str):
        return str(value).lower() if isinstance(value, bool) else value
    return f"{float(value):.17g}" if isinstance(value, int | float) else str(value)
