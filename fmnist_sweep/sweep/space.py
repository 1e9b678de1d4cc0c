"""What a sweep searches: its overrides as Optuna's distributions, every value checked first."""

import itertools
import math
import random
from collections.abc import Callable, Sequence
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
MOST_COMBINATIONS = 50  # of swept groups, in which a value is tried
_NOTHING = object()

Compose = Callable[[Sequence[str]], DictConfig]


@dataclass(frozen=True)
class Space:
    """A sweep's keys and what each may be.

    distributions: by config key. Choices that are lists, mappings or interpolations are kept as
        they would be written on the command line.
    written: the key as an override has it, with a `+` where it adds a key.
    texts: by key, such choices as they would be written on the command line.
    fixed: overrides that all trials share, with the types that they have once composed.
    lines: the same as the command line has them.
    points: values to be tried first, in this order: a grid's all, a search's default configuration.
    default: what each swept key is without the sweep, where it has a value.
    base: every other key of the configuration, by its dotted name.
    """

    distributions: dict[str, BaseDistribution]
    written: dict[str, str]
    texts: dict[str, list[str]]
    fixed: dict[str, Any]
    lines: list[str]
    points: list[dict[str, Any]]
    default: dict[str, Any]
    base: dict[str, Any]
    n_trials: int
    is_grid: bool

    def overrides(self, values: dict[str, Any]) -> list[str]:
        """The command line of one trial."""
        return [
            *self.lines,
            *(
                _written(self.written.get(k, k), v, self.texts.get(k, ()))
                for k, v in values.items()
            ),
        ]

    def is_default(self, values: dict[str, Any]) -> bool:
        """Whether a trial's values are those that its keys have without the sweep."""
        return all(key in self.default and self.default[key] == v for key, v in values.items())

    def described(self) -> dict[str, str]:
        """Each key's distribution in words, as messages and the study have it."""
        return {key: _words(distribution) for key, distribution in self.distributions.items()}


def read(
    arguments: Sequence[str],
    settings: Settings,
    compose: Compose,
    is_group: Callable[[str], bool],
    task: Task,
    seed: int,
) -> Space:
    """Reads a sweep's command line and checks every value that its keys can take.

    Args:
        arguments: overrides in Hydra's syntax, without those of `hydra.*`.
        compose: makes the whole configuration from a trial's overrides.
        is_group: whether a key is a group of configuration files.
        task: checks configurations.
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
    given = {_key(override): _distribution(override) for override in swept}
    texts = {key: texts for key, (_, _, texts) in given.items()}
    check = _Check(lines, texts, compose, task)
    for override in swept:
        check.first[_key(override)] = check.line(override, _ends(given[_key(override)][0])[0])
    for override in swept:
        key = _key(override)
        if is_group(override.key_or_group) or key.endswith("_target_"):
            check.add_options(override, given[key][1])
    base, is_default = check.base()
    distributions, order, default = {}, {}, {}
    for override in swept:
        key = _key(override)
        found, order[key], _ = given[key]
        distributions[key] = check.distribution(override, found)
        value = _value(base, override, _NOTHING)
        if is_default and value is not _NOTHING:
            default[key] = value
    is_search = (
        settings.params
        or settings.custom_search_space
        or any(override.is_interval_sweep() for override in swept)
    )
    alone = settings.design == "one_at_a_time"
    is_grid = settings.grid_sampler or alone or not is_search
    if is_grid:
        values = _values(distributions, order, swept)
        points = _one_at_a_time(values, default) if alone else _product(values)
        if settings.grid_sampler:
            random.Random(seed).shuffle(points)
        n_trials = min(settings.n_trials or len(points), len(points))
    else:
        points = _first(distributions, default) if settings.baseline else []
        n_trials = settings.n_trials or SEARCH_TRIALS
        if not settings.custom_search_space:
            points, n_trials = _each_once(distributions, order, swept, points, n_trials, seed)
    fixed = {o.key_or_group: _value(base, o, None) for o in shared if not o.is_delete()}
    rest = {k: v for k, v in _described_base(base).items() if k not in distributions}
    written = {_key(override): override.get_key_element() for override in swept}
    return Space(
        distributions, written, texts, fixed, lines, points, default, rest, n_trials, is_grid
    )


def _described_base(base: DictConfig) -> dict[str, Any]:
    """The base configuration by dotted keys; of what the time decides, how it is written."""
    task = _task(base)
    written = _flat(OmegaConf.to_container(task, resolve=False))
    try:
        values = _flat(OmegaConf.to_container(task, resolve=True))
    except OmegaConfBaseException:  # as of a reference to what only the sweep fills in
        return written
    return {k: written[k] if "${now:" in str(written.get(k)) else v for k, v in values.items()}


def _overrides(arguments: Sequence[str], params: dict[str, Any]) -> list[Override]:
    """The command line's overrides, and the search file's where the command line says nothing."""
    parser = OverridesParser.create()
    try:
        given = [_settled(one) for one in parser.parse_overrides(list(arguments))]
        # A search file's text is in the words of the command line; what YAML has read is a value.
        words = {k: v if isinstance(v, str) else override_text(v) for k, v in params.items()}
        lines = [f"{key}={text}" for key, text in words.items()]
        searched = [_settled(one) for one in parser.parse_overrides(lines)]
    except HydraException as error:
        raise ConfigError(hydra_line(error)) from None
    keys = [_key(override) for override in given]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key}: is given {keys.count(key)} times; give it once")
    return [*(o for o in searched if _key(o) not in keys), *given]


def _settled(override: Override) -> Override:
    """A choice of one value as that value: see `cli.sweep_arguments`."""
    if override.is_delete() or not override.is_choice_sweep():
        return override
    values = list(override.sweep_iterator(transformer=Transformer.encode))
    if len(values) > 1:
        return override
    return OverridesParser.create().parse_override(f"{override.get_key_element()}={values[0]}")


def _written(element: str, value: Any, texts: Sequence[str]) -> str:
    """An override of a value, or of one that is a text of another already."""
    return f"{element}={value if value in texts else override_text(value)}"


def _key(override: Override) -> str:
    """A key's name, without the `+` or `~` that an override may put before it."""
    return override.get_key_element().lstrip("+~")


def _line(override: Override) -> str:
    return str(override.input_line)


def _distribution(override: Override) -> tuple[BaseDistribution, list[Any], list[str]]:
    """An override's values.

    Returns:
        The values as Optuna has them, choices sorted: they are the same whatever their order. Then
        the choices in the order given, and which of these are the text of something else.
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
        texts = []
        for value in override.sweep_iterator():  # once: each time shuffle() has another order
            choice = plain(value)
            if holds_interpolation(choice):
                choice = str(Transformer.encode(value))
                texts.append(choice)
            elif isinstance(choice, dict | list):
                choice = override_text(choice)
                texts.append(choice)
            choices.append(choice)
        # The same value twice is the same trial twice.
        choices = list({repr(choice): choice for choice in choices}.values())
        return CategoricalDistribution(sorted(choices, key=_rank)), choices, texts
    except (ValueError, HydraException, AssertionError) as error:
        raise ConfigError(f"{_line(override)}: {one_line(error)}") from None


def _rank(choice: Any) -> tuple[str, float, str]:
    """Sorts choices of any types, numbers by value."""
    is_number = isinstance(choice, int | float)
    return type(choice).__name__, choice if is_number else 0.0, str(choice)


class _Check:
    """Checks values before a sweep begins, each in a configuration that a trial could have.

    A key may exist for some options of a swept group alone, as `scheduler.final` does: a value is
    right if it is in the default configuration, or together with some options of what is swept.
    """

    def __init__(
        self, lines: list[str], texts: dict[str, list[str]], compose: Compose, task: Task
    ) -> None:
        self.lines = lines
        self.texts = texts
        self.compose = compose
        self.task = task
        self.first: dict[str, str] = {}  # an override of each swept key
        self.options: dict[str, list[str]] = {}
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def add_options(self, override: Override, values: Sequence[Any]) -> None:
        """Takes the options of a swept group, which decide what keys there are."""
        self.options[_key(override)] = [self.line(override, value) for value in values]

    def line(self, override: Override, value: Any) -> str:
        """An override of one of a swept key's values."""
        return _written(override.get_key_element(), value, self.texts[_key(override)])

    def _combinations(self, but: str | None = None) -> list[tuple[str, ...]]:
        """Overrides of swept groups: none, each option by itself, then together.

        Last, as a class may want them all, the first values of all swept keys.
        """
        options = [lines for key, lines in self.options.items() if key != but]
        alone = [(line,) for lines in options for line in lines]
        together = itertools.islice(itertools.product(*options), MOST_COMBINATIONS)
        first = tuple(line for key, line in self.first.items() if key != but)
        return list(dict.fromkeys([(), *alone, *together, first]))

    def base(self) -> tuple[DictConfig, bool]:
        """The configuration without the sweep, or with the first options that the rest goes with.

        Returns:
            The configuration, and whether it is the default one.
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
        if combination not in self.composed:
            self.composed[combination] = self.compose([*self.lines, *combination])
        return self.composed[combination]

    def distribution(self, override: Override, found: BaseDistribution) -> BaseDistribution:
        """Checks a key's values, and takes whole ends of an interval as integers where it must."""
        try:
            self._value(override, _ends(found)[0])
        except ConfigError:
            whole = _as_integers(found)
            if whole is None:
                raise
            found = whole
            self._value(override, _ends(found)[0])
        for value in _ends(found)[1:]:
            self._value(override, value)
        return found

    def _value(self, override: Override, value: Any) -> None:
        """Checks one value.

        Raises:
            ConfigError: it is wrong with every combination; says why in the first that has its key.
        """
        no_key: ConfigError | None = None
        wrong: ConfigError | None = None
        for combination in self._combinations(but=_key(override)):
            try:
                config = self._with(override, value, combination)
            except ConfigError as error:
                no_key = no_key or error
                continue
            try:
                self.task.check(config)
                return
            except ConfigError as error:
                wrong = wrong or error
        if _key(override) in self.options and not wrong:
            # The option exists; what it lacks is told by the trials that it makes impossible.
            self.compose([self.line(override, value)])
            return
        reason = wrong or no_key
        assert reason is not None
        raise reason

    def _with(self, override: Override, value: Any, combination: tuple[str, ...]) -> DictConfig:
        line = self.line(override, value)
        key = _key(override)
        if key in self.options or override.package:
            return self._compose((*combination, line))
        # Composing takes a tenth of a second: a plain key needs it once, to know that it exists.
        known = (*combination, key)
        if known not in self.composed:
            self.composed[known] = self.compose([*self.lines, *combination, line])
            return self.composed[known]
        config = self.composed[known]
        one = OverridesParser.create().parse_override(line)
        try:  # in place, as its type is kept there: the key's next value takes its turn
            OmegaConf.update(config, one.key_or_group, one.value(), force_add=True)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{line}: {first_line(error)}") from None
        return config


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
    distributions: dict[str, BaseDistribution],
    order: dict[str, list[Any]],
    swept: Sequence[Override],
) -> dict[str, list[Any]]:
    """The values that each key has in a grid, in the order given."""
    values = {}
    for override in swept:
        key = _key(override)
        distribution = distributions[key]
        _check_size(override, distribution)
        try:
            choices = order[key] or OptunaSweeperImpl._to_grid_sampler_choices(distribution)
        except ValueError:
            raise ConfigError(
                f"{_line(override)}: a grid needs choices, a range or int(interval(...))"
            ) from None
        values[key] = list(choices)
    return values


def _each_once(
    distributions: dict[str, BaseDistribution],
    order: dict[str, list[Any]],
    swept: Sequence[Override],
    points: list[dict[str, Any]],
    n_trials: int,
    seed: int,
) -> tuple[list[dict[str, Any]], int]:
    """A search that could try all that there is does so, where a sampler would draw points again.

    Returns:
        The points to be tried first, and the number of trials: both as they were where the space
        has more points than the search has trials.
    """
    try:
        values = _values(distributions, order, swept)
    except ConfigError:  # an interval, or a range without end
        return points, n_trials
    if math.prod(map(len, values.values())) > n_trials:
        return points, n_trials
    rest = [point for point in _product(values) if point not in points]
    random.Random(seed).shuffle(rest)
    return [*points, *rest], len(points) + len(rest)


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
        if key not in default or default[key] not in some:
            known = f", {override_text(default[key])}," if key in default else ""
            raise ConfigError(
                f"hydra.sweeper.design=one_at_a_time: {key} must have its default{known} among "
                "its values"
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


def _value(config: DictConfig, override: Override, missing: Any) -> Any:
    """A key's composed value as a choice has it; a group's option by its name."""
    choices = config.hydra.runtime.choices
    if override.key_or_group in choices:
        return choices[override.key_or_group]
    value = OmegaConf.select(config, override.key_or_group, default=missing)
    if OmegaConf.is_config(value):
        return override_text(OmegaConf.to_container(value, resolve=True))
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
        words = (c if isinstance(c, str) else override_text(c) for c in distribution.choices)
        return ",".join(words)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    integer = isinstance(distribution, IntDistribution)
    step = distribution.step if distribution.step not in (None, 1) else None
    tags = [*(["integer"] if integer else []), *(["log"] if distribution.log else [])]
    if step is not None:
        tags.append(f"step {step}")
    text = f"{distribution.low} to {distribution.high}"
    return f"{text} ({', '.join(tags)})" if tags else text
