"""The space of a sweep: parse its overrides into Optuna distributions and check all values."""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.errors import HydraException
from hydra_plugins.hydra_optuna_sweeper._impl import (
    OptunaSweeperImpl,
    create_optuna_distribution_from_override,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from fmnist_sweep.base.errors import ConfigError, first_line, hydra_line, one_line
from fmnist_sweep.sweep.overrides import holds_interpolation, override_text, plain
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.task import Task

SEARCH_TRIALS = 20
LARGEST_GRID = 100_000
MAX_COMBINATIONS = 50  # of options of swept groups, with which a value is checked
_MISSING = object()

Compose = Callable[[Sequence[str]], DictConfig]


@dataclass(frozen=True)
class Space:
    """The keys of a sweep and the values that each key may take.

    Attributes:
        distributions: the distribution of each swept config key. Choices that are lists, mappings
            or interpolations are strings in override syntax.
        key_elements: each swept key as an override spells it, with a `+` if it adds the key.
        raw_choices: by swept key, its choices that are strings in override syntax.
        fixed_values: by key, the composed values of the overrides that all trials share.
        fixed_overrides: the same overrides as the command line has them.
        initial_points: parameter values to try first, in this order: all points of a grid, the
            default configuration of a search, all points of a search that can try them all.
        defaults: the value of each swept key without the sweep, if it has one.
        base: every other key of the configuration, by its dotted name.
        n_trials: the number of trials of the sweep.
        is_exhaustive: whether `initial_points` are all that can be tried.
        is_grid: whether the sweep is a grid, not a search.
    """

    distributions: dict[str, BaseDistribution]
    key_elements: dict[str, str]
    raw_choices: dict[str, list[str]]
    fixed_values: dict[str, Any]
    fixed_overrides: list[str]
    initial_points: list[dict[str, Any]]
    defaults: dict[str, Any]
    base: dict[str, Any]
    n_trials: int
    is_exhaustive: bool
    is_grid: bool

    def overrides(self, values: Mapping[str, Any]) -> list[str]:
        """Return the overrides of a trial with the given parameter values."""
        return [
            *self.fixed_overrides,
            *(
                _assignment(self.key_elements.get(k, k), v, self.raw_choices.get(k, ()))
                for k, v in values.items()
            ),
        ]

    def is_default(self, values: Mapping[str, Any]) -> bool:
        """Return whether the values are those of the default configuration."""
        return all(key in self.defaults and self.defaults[key] == v for key, v in values.items())

    def descriptions(self) -> dict[str, str]:
        """Return a description of each key's distribution, for messages and for the study."""
        return {key: _describe(distribution) for key, distribution in self.distributions.items()}


def parse_space(
    arguments: Sequence[str],
    settings: Settings,
    compose: Compose,
    is_group: Callable[[str], bool],
    task: Task,
    seed: int,
) -> Space:
    """Parse a sweep's command line and check every value that its keys can take.

    Args:
        arguments: overrides in Hydra's syntax, without those of `hydra.*`.
        settings: the settings of the sweep, `hydra.sweeper`.
        compose: composes the whole configuration from a trial's overrides.
        is_group: returns whether a key is a group of configuration files.
        task: checks configurations.
        seed: seed of the order in which a search that can try all points, or
            `hydra/sweeper/sampler=grid`, takes its points.

    Raises:
        ConfigError: the user's mistake, in one line or a few.
    """
    overrides = _parse_overrides(arguments, settings.params)
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
    fixed_overrides = [_input_line(o) for o in shared]
    parsed = {_key(override): _parse_values(override) for override in swept}
    raw_choices = {key: raw for key, (_, _, raw) in parsed.items()}
    checker = _ValueChecker(fixed_overrides, raw_choices, compose, task)
    for override in swept:
        first_value = _values_to_check(parsed[_key(override)][0])[0]
        checker.first[_key(override)] = checker.assignment(override, first_value)
    for override in swept:
        key = _key(override)
        if is_group(override.key_or_group) or key.endswith("_target_"):
            checker.add_options(override, parsed[key][1])
    base, is_default = checker.base()
    distributions, order, defaults = {}, {}, {}
    for override in swept:
        key = _key(override)
        distribution, order[key], _ = parsed[key]
        distributions[key] = checker.check_distribution(override, distribution)
        value = _composed_value(base, override, _MISSING)
        if is_default and value is not _MISSING:
            defaults[key] = value
    is_search = (
        settings.params
        or settings.custom_search_space
        or any(override.is_interval_sweep() for override in swept)
    )
    one_at_a_time = settings.design == "one_at_a_time"
    is_grid = settings.grid_sampler or one_at_a_time or not is_search
    if is_grid and settings.points:
        raise ConfigError("hydra.sweeper.points: a grid tries all of its points; leave them out")
    if is_grid:
        values = _grid_values(distributions, order, swept)
        points = _one_at_a_time(values, defaults) if one_at_a_time else _product(values)
        if settings.grid_sampler:
            random.Random(seed).shuffle(points)
        n_trials, is_exhaustive = min(settings.n_trials or len(points), len(points)), True
    else:
        points = _given_points(settings.points, distributions, defaults)
        if settings.baseline:
            points += [p for p in _default_point(distributions, defaults) if p not in points]
        n_trials, is_exhaustive = settings.n_trials or SEARCH_TRIALS, False
        if not settings.custom_search_space:
            all_points = _all_points(distributions, order, swept, n_trials)
            if all_points:  # a sampler would repeat points
                rest = [point for point in all_points if point not in points]
                random.Random(seed).shuffle(rest)
                points, is_exhaustive = [*points, *rest], True
                n_trials = len(points)
    fixed_values = {
        o.key_or_group: _composed_value(base, o, None) for o in shared if not o.is_delete()
    }
    return Space(
        distributions=distributions,
        key_elements={_key(override): override.get_key_element() for override in swept},
        raw_choices=raw_choices,
        fixed_values=fixed_values,
        fixed_overrides=fixed_overrides,
        initial_points=points,
        defaults=defaults,
        base={
            **{k: v for k, v in _base_values(base).items() if k not in distributions},
            **task.dependencies(base),
        },
        n_trials=n_trials,
        is_exhaustive=is_exhaustive,
        is_grid=is_grid,
    )


def _base_values(base: DictConfig) -> dict[str, Any]:
    """Return the base configuration by dotted keys, with `${now:...}` left unresolved."""
    kept = {key: value for key, value in base.items_ex(resolve=False) if key != "hydra"}
    config = OmegaConf.create(kept)
    unresolved = _flatten(OmegaConf.to_container(config, resolve=False))
    try:
        values = _flatten(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException:  # for example, a reference to a key that only trials have
        return unresolved
    return {
        key: unresolved[key] if "${now:" in str(unresolved.get(key)) else value
        for key, value in values.items()
    }


def _parse_overrides(arguments: Sequence[str], params: dict[str, Any]) -> list[Override]:
    """Return the overrides of the command line, and those of `params` for other keys."""
    parser = OverridesParser.create()
    try:
        given = [_without_single_choice(o) for o in parser.parse_overrides(list(arguments))]
        # A string in `params` is in override syntax; anything else is a value parsed by YAML.
        texts = {k: v if isinstance(v, str) else override_text(v) for k, v in params.items()}
        lines = [f"{key}={text}" for key, text in texts.items()]
        searched = [_without_single_choice(o) for o in parser.parse_overrides(lines)]
    except HydraException as error:
        raise ConfigError(hydra_line(error)) from None
    keys = [_key(override) for override in given]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key}: is given {keys.count(key)} times; give it once")
    return [*(o for o in searched if _key(o) not in keys), *given]


def _without_single_choice(override: Override) -> Override:
    """Turn a choice of a single value into that value; see `cli.sweep_arguments`."""
    if override.is_delete() or not override.is_choice_sweep():
        return override
    values = list(override.sweep_iterator(transformer=Transformer.encode))
    if len(values) > 1:
        return override
    return OverridesParser.create().parse_override(f"{override.get_key_element()}={values[0]}")


def _assignment(key_element: str, value: Any, raw_choices: Sequence[str]) -> str:
    """Return an override that sets a key to a value, or to a raw choice."""
    return f"{key_element}={value if value in raw_choices else override_text(value)}"


def _key(override: Override) -> str:
    """Return the key of an override without a leading `+` or `~`."""
    return override.get_key_element().lstrip("+~")


def _input_line(override: Override) -> str:
    return str(override.input_line)


def _parse_values(override: Override) -> tuple[BaseDistribution, list[Any], list[str]]:
    """Parse the values of a swept override.

    Returns:
        The distribution, whose choices are sorted so that their order makes no difference; the
        choices in the given order; the choices among them that are in override syntax.
    """
    try:
        if override.is_interval_sweep():
            distribution = create_optuna_distribution_from_override(override)
            assert isinstance(distribution, BaseDistribution)
            return distribution, [], []
        if override.is_range_sweep():
            distribution = create_optuna_distribution_from_override(override)
            if isinstance(distribution, IntDistribution):
                return distribution, [], []
            _check_size(override, distribution)
        choices: list[Any] = []
        raw_choices = []
        for value in override.sweep_iterator():  # once only, as shuffle() has a new order each time
            choice = plain(value)
            if holds_interpolation(choice):
                choice = str(Transformer.encode(value))
                raw_choices.append(choice)
            elif isinstance(choice, dict | list):
                choice = override_text(choice)
                raw_choices.append(choice)
            choices.append(choice)
        # A repeated value would repeat trials.
        choices = list({repr(choice): choice for choice in choices}.values())
        return CategoricalDistribution(sorted(choices, key=_sort_key)), choices, raw_choices
    except (ValueError, HydraException, AssertionError) as error:
        raise ConfigError(f"{_input_line(override)}: {one_line(error)}") from None


def _sort_key(choice: Any) -> tuple[str, float, str]:
    """Return a sort key for choices of mixed types, numbers by value."""
    is_number = isinstance(choice, int | float)
    return type(choice).__name__, choice if is_number else 0.0, str(choice)


class _ValueChecker:
    """Checker of values before a sweep begins, each in a configuration that a trial could have.

    A key may exist for some options of a swept group only, such as `scheduler.final`. A value must
    be valid in the default configuration or with some combination of swept options.
    """

    def __init__(
        self,
        fixed_overrides: list[str],
        raw_choices: dict[str, list[str]],
        compose: Compose,
        task: Task,
    ) -> None:
        self.fixed_overrides = fixed_overrides
        self.raw_choices = raw_choices
        self.compose = compose
        self.task = task
        self.first: dict[str, str] = {}  # by swept key, an override with its first value
        self.options: dict[str, list[str]] = {}  # by swept group, overrides with its options
        self.cache: dict[tuple[str, ...], DictConfig] = {}  # configurations by combination

    def add_options(self, override: Override, values: Sequence[Any]) -> None:
        """Add the options of a swept group, which decide which keys exist."""
        self.options[_key(override)] = [self.assignment(override, value) for value in values]

    def assignment(self, override: Override, value: Any) -> str:
        """Return an override that sets a swept key to one of its values."""
        return _assignment(override.get_key_element(), value, self.raw_choices[_key(override)])

    def _combinations(self, excluded: str | None = None) -> list[tuple[str, ...]]:
        """Return the combinations of overrides to try, as tuples.

        The order is: no override, each option of a swept group alone, options of all swept groups
        together. The last combination has the first value of every swept key, as a class may need
        all of them.

        Args:
            excluded: a key to leave out.
        """
        options = [lines for key, lines in self.options.items() if key != excluded]
        single = [(line,) for lines in options for line in lines]
        together = itertools.islice(itertools.product(*options), MAX_COMBINATIONS)
        first = tuple(line for key, line in self.first.items() if key != excluded)
        return list(dict.fromkeys([(), *single, *together, first]))

    def base(self) -> tuple[DictConfig, bool]:
        """Compose the configuration without the sweep, or else with the first valid swept options.

        Returns:
            The configuration, and whether it is the default configuration.

        Raises:
            ConfigError: no combination is valid; the message is that of the first.
        """
        first: ConfigError | None = None
        for combination in self._combinations():
            try:
                config = self._compose(combination)
                self.task.check_keys(config)
            except ConfigError as error:
                first = first or error
            else:
                return config, not combination
        assert first is not None
        raise first

    def _compose(self, combination: tuple[str, ...]) -> DictConfig:
        if combination not in self.cache:
            self.cache[combination] = self.compose([*self.fixed_overrides, *combination])
        return self.cache[combination]

    def check_distribution(
        self, override: Override, distribution: BaseDistribution
    ) -> BaseDistribution:
        """Check a key's values; turn the interval into integers if the key rejects floats."""
        try:
            self._check_value(override, _values_to_check(distribution)[0])
        except ConfigError:
            integers = _as_integers(distribution)
            if integers is None:
                raise
            distribution = integers
            self._check_value(override, _values_to_check(distribution)[0])
        for value in _values_to_check(distribution)[1:]:
            self._check_value(override, value)
        return distribution

    def _check_value(self, override: Override, value: Any) -> None:
        """Check a value.

        Raises:
            ConfigError: every combination rejects the value; the message is that of the first
                combination that has the key.
        """
        no_key: ConfigError | None = None
        wrong: ConfigError | None = None
        for combination in self._combinations(excluded=_key(override)):
            try:
                config = self._compose_value(override, value, combination)
            except ConfigError as error:
                no_key = no_key or error
                continue
            try:
                self.task.check(config)
                return
            except ConfigError as error:
                wrong = wrong or error
        if _key(override) in self.options and not wrong:
            # If the option exists, the impossible trials will report what it lacks.
            self.compose([self.assignment(override, value)])
            return
        reason = wrong or no_key
        assert reason is not None
        raise reason

    def _compose_value(
        self, override: Override, value: Any, combination: tuple[str, ...]
    ) -> DictConfig:
        line = self.assignment(override, value)
        key = _key(override)
        if key in self.options or override.package:
            return self._compose((*combination, line))
        # Composing takes 0.1 s. A plain key needs it once only, to check that the key exists.
        cache_key = (*combination, key)
        if cache_key not in self.cache:
            self.cache[cache_key] = self.compose([*self.fixed_overrides, *combination, line])
            return self.cache[cache_key]
        config = self.cache[cache_key]
        parsed = OverridesParser.create().parse_override(line)
        try:  # in place, which keeps the key's type; the key's next value replaces this one
            OmegaConf.update(config, parsed.key_or_group, parsed.value(), force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{line}: {first_line(error)}") from None
        return config


def _values_to_check(distribution: BaseDistribution) -> list[Any]:
    """Return the values to check: all choices, or the ends of a range, as few keys have gaps."""
    if isinstance(distribution, IntDistribution | FloatDistribution):
        return [distribution.low, distribution.high]
    assert isinstance(distribution, CategoricalDistribution)
    return list(distribution.choices)


def _as_integers(distribution: BaseDistribution) -> IntDistribution | None:
    """Return an interval such as `interval(5,50)`, which Hydra parses as floats, as integers."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is not None:
        return None
    low, high = distribution.low, distribution.high
    if not (low.is_integer() and high.is_integer()):
        return None
    return IntDistribution(int(low), int(high), log=distribution.log)


def _grid_values(
    distributions: dict[str, BaseDistribution],
    order: dict[str, list[Any]],
    swept: Sequence[Override],
) -> dict[str, list[Any]]:
    """Return the values of each key in a grid, in the given order."""
    values = {}
    for override in swept:
        key = _key(override)
        distribution = distributions[key]
        _check_size(override, distribution)
        try:
            choices = order[key] or OptunaSweeperImpl._to_grid_sampler_choices(distribution)
        except ValueError:
            raise ConfigError(
                f"{_input_line(override)}: a grid needs choices, a range or int(interval(...))"
            ) from None
        values[key] = list(choices)
    return values


def _all_points(
    distributions: dict[str, BaseDistribution],
    order: dict[str, list[Any]],
    swept: Sequence[Override],
    at_most: int,
) -> list[dict[str, Any]]:
    """Return all points of a space; none if there are more than `at_most`."""
    try:
        values = _grid_values(distributions, order, swept)
    except ConfigError:  # an interval, or a range that is too long
        return []
    return _product(values) if math.prod(map(len, values.values())) <= at_most else []


def _check_size(override: Override, distribution: Any) -> None:
    """Refuse a range with too many values to list."""
    step = getattr(distribution, "step", None)
    if step and (distribution.high - distribution.low) / step >= LARGEST_GRID:
        raise ConfigError(f"{_input_line(override)}: has more than {LARGEST_GRID:,} values")


def _product(values: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return all combinations; the last key changes fastest."""
    size = math.prod(map(len, values.values()))
    if size > LARGEST_GRID:
        raise ConfigError(f"a grid of {size:,} trials is more than {LARGEST_GRID:,}")
    return [dict(zip(values, point)) for point in itertools.product(*values.values())]


def _one_at_a_time(values: dict[str, list[Any]], defaults: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the default point, then points with one key each at another value."""
    for key, choices in values.items():
        if key not in defaults or defaults[key] not in choices:
            known = f", {override_text(defaults[key])}," if key in defaults else ""
            raise ConfigError(
                f"hydra.sweeper.design=one_at_a_time: {key} must have its default{known} among "
                "its values"
            )
    base = {key: defaults[key] for key in values}
    others = [(key, v) for key, choices in values.items() for v in choices if v != base[key]]
    return [base, *({**base, key: value} for key, value in others)]


def _default_point(
    distributions: dict[str, BaseDistribution], defaults: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the default configuration as the only point, or no point if the space excludes it."""
    if any(
        key not in defaults or not is_inside(defaults[key], distribution)
        for key, distribution in distributions.items()
    ):
        return []
    return [{key: defaults[key] for key in distributions}]


def _given_points(
    given: Sequence[Mapping[str, Any]],
    distributions: dict[str, BaseDistribution],
    defaults: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return the points of `hydra.sweeper.points`, other keys at their defaults.

    Raises:
        ConfigError: a key is not searched, a value lies outside of the space, or a key has neither
            a value nor a default.
    """
    points: list[dict[str, Any]] = []
    for number, values in enumerate(given):
        where = f"hydra.sweeper.points[{number}]"
        if unknown := [key for key in values if key not in distributions]:
            raise ConfigError(
                f"{where}: {unknown[0]} is not searched; there are {', '.join(distributions)}"
            )
        point = {}
        for key, distribution in distributions.items():
            value = values.get(key, defaults.get(key, _MISSING))
            if value is _MISSING:
                raise ConfigError(f"{where}: {key} must be given, as it has no default")
            if isinstance(value, dict | list):  # choices of that kind are in override syntax
                value = override_text(value)
            if not is_inside(value, distribution):
                raise ConfigError(f"{where}: {key}={value}: must be of {_describe(distribution)}")
            point[key] = distribution.to_external_repr(distribution.to_internal_repr(value))
        if point not in points:
            points.append(point)
    return points


def is_inside(value: Any, distribution: BaseDistribution) -> bool:
    """Return whether a value is one of a distribution's."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False


def _composed_value(config: DictConfig, override: Override, missing: Any) -> Any:
    """Return a key's composed value in the form of a choice; the option's name for a group."""
    choices = config.hydra.runtime.choices
    if override.key_or_group in choices:
        return choices[override.key_or_group]
    value = OmegaConf.select(config, override.key_or_group, default=missing)
    if OmegaConf.is_config(value):
        return override_text(OmegaConf.to_container(value, resolve=True))
    return value


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _describe(distribution: BaseDistribution) -> str:
    if isinstance(distribution, CategoricalDistribution):
        texts = (c if isinstance(c, str) else override_text(c) for c in distribution.choices)
        return ",".join(texts)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    integer = isinstance(distribution, IntDistribution)
    step = distribution.step if distribution.step not in (None, 1) else None
    tags = [*(["integer"] if integer else []), *(["log"] if distribution.log else [])]
    if step is not None:
        tags.append(f"step {step}")
    text = f"{distribution.low} to {distribution.high}"
    return f"{text} ({', '.join(tags)})" if tags else text
