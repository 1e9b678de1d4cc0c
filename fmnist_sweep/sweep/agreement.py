"""Keep a sweep's definition in its study, and refuse to resume with another definition."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import check_distribution_compatibility

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.results.keys import is_below
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space

ATTRIBUTE = "began_with"
SHOWN = 3  # changes that the error message lists


def check_unchanged(
    study: optuna.Study, space: Space, settings: Settings, free_keys: Sequence[str]
) -> None:
    """Record the sweep's definition in a new study; check it against the record of an old study.

    Raises:
        ConfigError: the definitions differ; nothing has been added to the study.
    """
    now = _definition(space, settings, free_keys)
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
                    "name=another begins a new sweep; hydra.sweeper.accept_changes=true resumes",
                ]
            )
        )
    _check_compatible(study, space)
    study.set_user_attr(ATTRIBUTE, now)


def _check_compatible(study: optuna.Study, space: Space) -> None:
    """Refuse changes that Optuna cannot continue: other choices, another type of values."""
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


def _definition(space: Space, settings: Settings, free_keys: Sequence[str]) -> dict[str, Any]:
    """Return objective, directions, space and base configuration by the user's config keys."""
    return {
        "hydra.sweeper.objective": settings.objective,
        "hydra.sweeper.direction": settings.direction,
        "hydra.sweeper.custom_search_space": settings.custom_search_space,
        "hydra.sweeper.repeats": settings.repeats,
        **({"hydra.sweeper.constraints": settings.constraints} if settings.constraints else {}),
        "sweep": "grid" if space.is_grid else "search",
        **{key: f"[{text}]" for key, text in space.descriptions().items()},
        **{key: value for key, value in space.base.items() if not is_below(key, free_keys)},
    }
