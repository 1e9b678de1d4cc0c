"""`from=FOLDER` on the command line: the configuration of an earlier run, as overrides."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fmnist_sweep.base.errors import ConfigError, Error
from fmnist_sweep.results import facts, record
from fmnist_sweep.results.tables import Sweep
from fmnist_sweep.sweep.overrides import override_text
from fmnist_sweep.task.config import conf_folder
from fmnist_sweep.task.confirm.candidates import candidates, configuration

KEY = "from"
# Groups whose options a run records. `experiment` and `search` only set keys of these.
_GROUPS = ("model", "optimizer", "scheduler", "data", "augment")
# They belong to the earlier run, and not to what it trained.
_LEFT_OUT = ("name", "logger", "hydra")


def expanded(arguments: Sequence[str]) -> list[str]:
    """Replace `from=FOLDER` by the overrides that make the configuration of the run in a folder.

    Of a sweep it is the winner that `confirm` has found, or else the best trial; of a trial of a
    population it is its schedule. What the command line says itself wins.

    Args:
        arguments: the command line without the program's name.

    Raises:
        ConfigError: the folder holds neither a run nor a sweep, or its configuration cannot be
            read.
    """
    given = [text for text in arguments if text.startswith(f"{KEY}=")]
    if not given:
        return list(arguments)
    if len(given) > 1:
        raise ConfigError(f"{' '.join(given)}: only one configuration can be taken over")
    (text,) = given
    folder = Path(text.partition("=")[2])
    run = _run(folder)
    others = [argument.lstrip("+~").partition("=")[0] for argument in arguments]
    overrides = [
        override
        for key, override in _overrides(run, configuration(run))
        if not any(key == other or key.startswith(f"{other}.") for other in others)
    ]
    print(f"{KEY}={run}: {' '.join(overrides)}", file=sys.stderr)
    place = list(arguments).index(text)
    return [*arguments[:place], *overrides, *arguments[place + 1 :]]


def _run(folder: Path) -> Path:
    """Return the run folder that `from` means."""
    if (folder / ".hydra/config.yaml").exists():
        return folder
    if not folder.is_dir() or not record.attempts(folder):
        raise ConfigError(f"{KEY}={folder}: holds neither a run nor a sweep")
    try:
        sweep = Sweep(folder)
        sweep.update()
        runs = list(sweep.runs.values())
        if (winner := facts.confirmed_winner(folder)) in sweep.runs:
            return sweep.runs[winner].folder
        return candidates(folder, runs, 1, "val_accuracy")[0].run
    except Error as error:
        raise ConfigError(f"{KEY}={error}") from None


def _overrides(run: Path, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield keys and overrides by which a composed configuration gets the values."""
    chosen = {**facts.choices(run), "scheduler": values["scheduler"]["kind"]}
    groups = {
        group: chosen[group]
        for group in _GROUPS
        if Path(conf_folder(), group, f"{chosen.get(group)}.yaml").exists()
    }
    options = {group: f"{group}={option}" for group, option in groups.items()}
    with initialize_config_dir(conf_folder()):
        base, default = compose("config", list(options.values())), compose("config")
    for group, text in options.items():
        if base[group] != default[group]:
            yield group, text
    plain: Any = OmegaConf.to_container(base, resolve=True)
    for section, value in values.items():
        if section in _LEFT_OUT:
            continue
        keys = value if isinstance(value, Mapping) else {None: value}
        for name, wanted in keys.items():
            key = section if name is None else f"{section}.{name}"
            has = plain.get(section, {}) if name is None else plain.get(section, {}).get(name, _NO)
            if has != wanted:
                yield key, f"{'++' if has is _NO else ''}{key}={override_text(wanted)}"


_NO = object()
