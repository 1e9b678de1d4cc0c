"""What a sweep began with, kept in its study: going on with something else is refused."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.results.keys import is_below
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space

ATTRIBUTE = "began_with"
SHOWN = 3


def agree(study: optuna.Study, space: Space, settings: Settings, free_keys: Sequence[str]) -> None:
    """Notes in a new study what it is of; compares an old one with what it should be.

    Raises:
        ConfigError: they differ; nothing has been added to the study.
    """
    now = _terms(space, settings, free_keys)
    before = study.user_attrs.get(ATTRIBUTE)
    if before is None:
        if study.get_trials(deepcopy=False):
            raise ConfigError(
                f"hydra.sweeper.storage: its study {study.study_name} was not made by a sweep; "
                "name=another begins a new one"
            )
        study.set_user_attr(ATTRIBUTE, now)
        return
    changed = [
        f"  {key}: {before.get(key, '(none)')} -> {now.get(key, '(none)')}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key)
    ]
    if not changed:
        return
    if not settings.accept_changes:
        more = [f"  and {len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
        raise ConfigError(
            "\n".join(
                [
                    f"The sweep {study.study_name} began with something else:",
                    *(line[:200] for line in changed[:SHOWN]),
                    *more,
                    "name=another begins a new sweep; hydra.sweeper.accept_changes=true goes on",
                ]
            )
        )
    _check_compatible(study, space)
    study.set_user_attr(ATTRIBUTE, now)


def _check_compatible(study: optuna.Study, space: Space) -> None:
    """Refuses what Optuna cannot continue: a key's choices, or its kind, changed."""
    for trial in study.get_trials(deepcopy=False):
        for key, distribution in trial.distributions.items():
            if key not in space.distributions:
                continue
            try:
                check_distribution_compatibility(distribution, space.distributions[key])
            except ValueError:
                raise ConfigError(
                    f"{key}: one study cannot hold other choices or another kind of values for a "
                    "key; name=another begins a new sweep"
                ) from None


def _terms(space: Space, settings: Settings, free_keys: Sequence[str]) -> dict[str, Any]:
    """Objective, directions, space and base configuration, by keys as a user knows them."""
    return {
        "hydra.sweeper.objective": settings.objective,
        "hydra.sweeper.direction": settings.direction,
        "hydra.sweeper.custom_search_space": settings.custom_search_space,
        "hydra.sweeper.repeats": settings.repeats,
        "sweep": "grid" if space.is_grid else "search",
        **{key: f"[{words}]" for key, words in space.described().items()},
        **{key: value for key, value in space.base.items() if not is_below(key, free_keys)},
    }
