"""What a sweep searches: its overrides as Optuna's distributions, every value checked first."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException
from hydra_plugins.hydra_optuna_sweeper._impl import (
    OptunaSweeperImpl,
    create_optuna_distribution_from_override,
)
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from fmnist_sweep import build
from fmnist_sweep.cli import hydra_line, parsed
from fmnist_sweep.config import ConfigError
from fmnist_sweep.sweep.settings import Settings

SEARCH_TRIALS = 20
LARGEST_GRID = 100_000
_NOTHING = object()

Compose = Callable[[Sequence[str]], DictConfig]


@dataclass(frozen=True)
class Space:
    """A sweep's keys and what each may be.

    distributions: by config key. Choices that are no bool, number or text are kept as they would
        be written on the command line.
    written: the key as an override has it, with a `+` where it adds a key.
    fixed: overrides that all trials share, with the types that they have once composed.
    lines: the same as the command line has them.
    points: values to be tried first, in this order: a grid's all, a search's default configuration.
    default: what each swept key is without the sweep, where it has a value.
    base: every other key of the configuration, by its dotted name.
    """

    distributions: dict[str, BaseDistribution]
    written: dict[str, str]
    fixed: dict[str, Any]
    lines: list[str]
    points: list[dict[str, Any]]
    default: dict[str, Any]
    base: dict[str, Any]
    n_trials: int
    is_grid: bool

    def overrides(self, values: dict[str, Any]) -> list[str]:
        """The command line of one trial."""
        return [*self.lines, *(f"{self.written.get(k, k)}={v}" for k, v in values.items())]

    def is_default(self, values: dict[str, Any]) -> bool:
        """Whether a trial's values are those that its keys have without the sweep."""
        return all(key in self.default and self.default[key] == v for key, v in values.items())

    def described(self) -> dict[str, str]:
        """Each key's distribution in words, as messages and the study have it."""
        return {key: _words(distribution) for key, distribution in self.distributions.items()}


def read(arguments: Sequence[str], settings: Settings, compose: Compose, seed: int) -> Space:
    """Reads a sweep's command line and checks every value that its keys can take.

    Args:
        arguments: overrides in Hydra's syntax, without those of `hydra.*`.
        compose: makes the whole configuration from a trial's overrides.
        seed: of the order in which `hydra/sweeper/sampler=grid` takes its points.

    Raises:
        ConfigError: what is wrong, in a line or a few.
    """
    overrides = _overrides(arguments, settings.params)
    shared = [o for o in overrides if o.is_delete() or not o.is_sweep_override()]
    swept = [o for o in overrides if not o.is_delete() and o.is_sweep_override()]
    if not swept and not settings.custom_search_space:
        if settings.params:
            keys = ", ".join(settings.params)
            raise ConfigError(f"-m sweeps nothing: {keys} has one value each; give it several")
        raise ConfigError(
            "-m sweeps nothing: give a key several values (optimizer.lr=0.001,0.01), an interval "
            "(optimizer.lr=interval(0.001,0.1)) or a search (search=mlp)"
        )
    lines = [_line(o) for o in shared]
    base = compose(lines)
    parsed(base)
    distributions, default = {}, {}
    for override in swept:
        key = _key(override)
        distributions[key] = _checked(override, _distribution(override), lines, base, compose)
        value = _default(base, override)
        if value is not None:
            default[key] = value
        elif OmegaConf.select(base, override.key_or_group, default=_NOTHING) is None:
            default[key] = "null"  # as the choices have it
    is_search = (
        settings.params
        or settings.custom_search_space
        or any(override.is_interval_sweep() for override in swept)
    )
    alone = settings.design == "one_at_a_time"
    is_grid = settings.grid_sampler or alone or not is_search
    if is_grid:
        values = _values(distributions, swept)
        points = _one_at_a_time(values, default) if alone else _product(values)
        if settings.grid_sampler:
            random.Random(seed).shuffle(points)
        n_trials = min(settings.n_trials or len(points), len(points))
    else:
        points = _first(distributions, default) if settings.baseline else []
        n_trials = settings.n_trials or SEARCH_TRIALS
    fixed = {o.key_or_group: _default(base, o) for o in shared if not o.is_delete()}
    plain = _flat(OmegaConf.to_container(_task(base), resolve=True))
    rest = {k: v for k, v in plain.items() if k not in distributions}
    written = {_key(override): override.get_key_element() for override in swept}
    return Space(distributions, written, fixed, lines, points, default, rest, n_trials, is_grid)


def _overrides(arguments: Sequence[str], params: dict[str, Any]) -> list[Override]:
    """The command line's overrides, and the search file's where the command line says nothing."""
    parser = OverridesParser.create()
    try:
        given = parser.parse_overrides(list(arguments))
        searched = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    except HydraException as error:
        raise ConfigError(hydra_line(error)) from None
    keys = [_key(override) for override in given]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key}: is given {keys.count(key)} times; give it once")
    return [*(o for o in searched if _key(o) not in keys), *given]


def _key(override: Override) -> str:
    """A key's name, without the `+` or `~` that an override may put before it."""
    return override.get_key_element().lstrip("+~")


def _line(override: Override) -> str:
    return str(override.input_line)


def _distribution(override: Override) -> BaseDistribution:
    """An override's values as Optuna has them."""
    try:
        if override.is_interval_sweep():
            distribution = create_optuna_distribution_from_override(override)
            assert isinstance(distribution, BaseDistribution)
            return distribution
        if override.is_range_sweep():
            distribution = create_optuna_distribution_from_override(override)
            if isinstance(distribution, IntDistribution):
                return distribution
            _check_size(override, distribution)
        # The same value twice is the same trial twice.
        values = dict.fromkeys(override.sweep_iterator(transformer=Transformer.encode))
        return CategoricalDistribution(cast(list[CategoricalChoiceType], list(values)))
    except (ValueError, HydraException, AssertionError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{_line(override)}: {text}") from None


def _checked(
    override: Override,
    distribution: BaseDistribution,
    lines: list[str],
    base: DictConfig,
    compose: Compose,
) -> BaseDistribution:
    """Checks a key's values, and takes whole ends of an interval as integers where it must."""
    element = override.get_key_element()
    is_plain = override.key_or_group not in base.hydra.runtime.choices and not override.package

    def check(value: Any, first: bool) -> None:
        # Composing takes a tenth of a second: a plain key needs it once, to know that it exists.
        if first or not is_plain:
            config = compose([*lines, f"{element}={value}"])
        else:
            config = _task(base)
            one = OverridesParser.create().parse_override(f"{element}={value}")
            OmegaConf.update(config, one.key_or_group, one.value(), force_add=True)
        build.check(parsed(config))

    try:
        check(_ends(distribution)[0], first=True)
    except ConfigError:
        whole = _as_integers(distribution)
        if whole is None:
            raise
        distribution = whole
        check(_ends(distribution)[0], first=True)
    for value in _ends(distribution)[1:]:
        check(value, first=False)
    return distribution


def _ends(distribution: BaseDistribution) -> list[Any]:
    """The values to be checked: of a range its ends, as few keys have holes."""
    if isinstance(distribution, IntDistribution | FloatDistribution):
        return [distribution.low, distribution.high]
    assert isinstance(distribution, CategoricalDistribution)
    return list(distribution.choices)


def _as_integers(distribution: BaseDistribution) -> IntDistribution | None:
    """`interval(5,50)`, which Hydra reads as floats, for a key that wants integers."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is not None:
        return None
    low, high = distribution.low, distribution.high
    if not (low.is_integer() and high.is_integer()):
        return None
    return IntDistribution(int(low), int(high), log=distribution.log)


def _values(
    distributions: dict[str, BaseDistribution], swept: Sequence[Override]
) -> dict[str, list[Any]]:
    """The values that each key has in a grid."""
    values = {}
    for override in swept:
        distribution = distributions[_key(override)]
        _check_size(override, distribution)
        try:
            choices = OptunaSweeperImpl._to_grid_sampler_choices(distribution)
        except ValueError:
            raise ConfigError(
                f"{_line(override)}: a grid needs choices, a range or int(interval(...))"
            ) from None
        values[_key(override)] = list(choices)
    return values


def _check_size(override: Override, distribution: Any) -> None:
    """Refuses a range that is too long for a list of its values."""
    step = getattr(distribution, "step", None)
    if step and (distribution.high - distribution.low) / step >= LARGEST_GRID:
        raise ConfigError(f"{_line(override)}: has more than {LARGEST_GRID:,} values")


def _product(values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations, the last key changing fastest."""
    size = math.prod(map(len, values.values()))
    if size > LARGEST_GRID:
        raise ConfigError(f"a grid of {size:,} trials is more than {LARGEST_GRID:,}")
    return [dict(zip(values, point)) for point in itertools.product(*values.values())]


def _one_at_a_time(values: dict[str, list[Any]], default: dict[str, Any]) -> list[dict[str, Any]]:
    """The default configuration, then each key's other values with all other keys at theirs."""
    for key, some in values.items():
        if default.get(key) not in some:
            raise ConfigError(
                f"hydra.sweeper.design=one_at_a_time: {key} must have its default, "
                f"{default.get(key)}, among its values"
            )
    base = {key: default[key] for key in values}
    others = [(key, one) for key, some in values.items() for one in some if one != base[key]]
    return [base, *({**base, key: one} for key, one in others)]


def _first(
    distributions: dict[str, BaseDistribution], default: dict[str, Any]
) -> list[dict[str, Any]]:
    """The default configuration, if it lies in the space."""
    for key, distribution in distributions.items():
        if key not in default:
            return []
        try:
            inside = distribution._contains(distribution.to_internal_repr(default[key]))
        except (ValueError, TypeError):
            inside = False
        if not inside:
            return []
    return [{key: default[key] for key in distributions}]


def _default(config: DictConfig, override: Override) -> Any:
    """A key's composed value, plain and typed; a group's option by its name."""
    choices = config.hydra.runtime.choices
    if override.key_or_group in choices:
        return choices[override.key_or_group]
    value = OmegaConf.select(config, override.key_or_group)
    if OmegaConf.is_config(value):
        return Transformer.str(cast(Any, OmegaConf.to_container(value)))
    return value


def _task(config: DictConfig) -> DictConfig:
    """A configuration without Hydra's own part."""
    kept = {key: value for key, value in config.items_ex(resolve=False) if key != "hydra"}
    return OmegaConf.create(kept)


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _words(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(str(choice) for choice in distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    integer = isinstance(distribution, IntDistribution)
    step = distribution.step if distribution.step not in (None, 1) else None
    tags = [*(["integer"] if integer else []), *(["log"] if distribution.log else [])]
    if step is not None:
        tags.append(f"step {step}")
    text = f"{distribution.low} to {distribution.high}"
    return f"{text} ({', '.join(tags)})" if tags else text
