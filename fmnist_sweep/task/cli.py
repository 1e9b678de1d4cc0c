"""From the command line to a trial: check the configuration, make the folder, report errors."""

import itertools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
import omegaconf
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ConfigError, Error, hydra_line, one_line
from fmnist_sweep.base.files import absolute, absolute_url, make_unique_dir
from fmnist_sweep.base.locks import FolderLock
from fmnist_sweep.base.schema import known_keys
from fmnist_sweep.task.config import DATA_VARIABLE, Config, parse

# conf/config.yaml names a sweep's folder by `name` or, without a name, by the time.
OmegaConf.register_resolver("either", lambda first, second: first or second, replace=True)


def parsed(config: DictConfig) -> Config:
    """Check a composed configuration; its relative paths start in the directory of the command.

    Raises:
        ConfigError: one line for each wrong key.
    """
    if "hydra" in config:
        task = {key: value for key, value in config.items_ex(resolve=False) if key != "hydra"}
        config = OmegaConf.create(task)
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue:
        missing = sorted(OmegaConf.missing_keys(config))
        lines = [f"{key}: must be given: {key}=..." for key in missing]
        raise ConfigError("\n".join(lines)) from None
    assert isinstance(values, dict)
    # A job may run in its run folder; Hydra knows the directory of the command.
    folder = HydraConfig.get().runtime.cwd if HydraConfig.initialized() else os.curdir
    return parse({str(key): value for key, value in values.items()}, Path(folder))


class PrepareRun(Callback):
    """Hydra's callback for a single run: check the configuration, then make the run folder."""

    lock: FolderLock | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Prepare the run; exit with one line if it cannot be started."""
        # Of a callback's exceptions Hydra passes on SystemExit alone; others become warnings.
        try:
            self._prepare(config)
        except Error as error:
            sys.exit(str(error))
        except OSError as error:
            sys.exit(f"hydra.run.dir={config.hydra.run.dir}: {error.strerror}")
        except Exception:
            traceback.print_exc()
            sys.exit(1)

    def _prepare(self, config: DictConfig) -> None:
        with command.imports():
            from fmnist_sweep.task import build, trial

        checked = parsed(config)
        build.check(checked)
        searched = config.hydra.sweeper.get("params")
        if searched:
            chosen = config.hydra.runtime.choices.get("search")
            search = f"search={chosen}" if chosen else "hydra.sweeper.params"
            print(
                f"{search}: add -m to search {', '.join(searched)}; without it, this is a single "
                "trial of the default configuration",
                file=sys.stderr,
            )
        folder = Path(config.hydra.run.dir)
        if any(override.startswith("hydra.run.dir=") for override in config.hydra.overrides.hydra):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self.lock = FolderLock(folder)
            except BlockingIOError:
                raise ConfigError(
                    f"hydra.run.dir={folder}: another process trains there; name another folder"
                ) from None
            try:
                trial.check_folder(checked, folder)
            except ConfigError as error:
                raise ConfigError(f"hydra.run.dir={error}") from None
            return
        folder = make_unique_dir(folder)
        self.lock = FolderLock(folder)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.run.dir = str(folder)

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        """Release the run folder."""
        self.lock = None


def run_hydra_command(main: Callable[[], Any]) -> None:
    """Run a Hydra application; report a user's mistake in one line and exit with code 1.

    Args:
        main: the function that `hydra.main` returned.
    """
    # Without this variable Hydra prints errors itself, at length.
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # A job may run in another directory.
    if folder := os.environ.get(DATA_VARIABLE):
        os.environ[DATA_VARIABLE] = absolute(folder)
    if store := os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ["MLFLOW_TRACKING_URI"] = absolute_url(store)

    def run() -> None:
        _refuse_folder_of_run(sys.argv[1:])
        sys.argv[1:] = sweep_arguments(_without_from(sys.argv[1:]))
        main()

    try:
        command.run(run, explain=_explain)
    finally:
        del os.environ["HYDRA_FULL_ERROR"]
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _refuse_folder_of_run(arguments: Sequence[str]) -> None:
    """Refuse a run's configuration as `--config-dir`: `conf/config.yaml` would hide it."""
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        option, _, value = argument.partition("=")
        if option not in ("--config-dir", "-cd"):
            continue
        folder = Path(value or following)
        if (folder / "hydra.yaml").exists() and (folder / "overrides.yaml").exists():
            raise ConfigError(
                f"{option}={folder}: holds a run's configuration, which Hydra would not read; "
                f"from={folder.parent} takes it over"
            )


def _without_from(arguments: Sequence[str]) -> Sequence[str]:
    if not any(argument.startswith("from=") for argument in arguments):
        return arguments  # spares imports
    from fmnist_sweep.task import rerun

    return rerun.expanded(arguments)


def _explain(error: Exception) -> str | None:
    """Return the line for an error of Hydra, OmegaConf or YAML, or None for any other error."""
    if _raised_by_hydra(error) or isinstance(error, HydraException | OmegaConfBaseException):
        return hydra_line(error, known_keys(Config))
    return f"YAML: {one_line(error)}" if isinstance(error, YAMLError) else None


def _raised_by_hydra(error: BaseException) -> bool:
    """Return whether Hydra's own code raised an error, such as for an override without a key."""
    trace = traceback.extract_tb(error.__traceback__)
    packages = [Path(module.__file__).parent for module in (hydra, omegaconf) if module.__file__]
    return bool(trace) and any(map(Path(trace[-1].filename).is_relative_to, packages))


def sweep_arguments(arguments: Sequence[str]) -> list[str]:
    """Return a command line in which overrides of keys below a swept group are swept too.

    An example is `-m scheduler=cosine,onecycle scheduler.per=epoch`. Hydra composes the
    configuration once without the swept overrides, so it would not find `scheduler.per`. As a
    choice of one value, the override is swept too and applied in each trial.

    Args:
        arguments: the command line without the program's name.
    """
    if not {"-m", "--multirun"} & {*arguments}:
        return list(arguments)
    parser = OverridesParser.create()
    overrides: dict[str, Override] = {}
    for argument in arguments:
        with suppress(HydraException):  # an option, or a mistake that Hydra will report
            overrides[argument] = parser.parse_override(argument)
    swept = tuple(f"{o.key_or_group}." for o in overrides.values() if o.is_sweep_override())

    def rewrite(argument: str) -> str:
        override = overrides.get(argument)
        if override is None or override.is_delete() or override.is_sweep_override():
            return argument
        key, _, value = argument.partition("=")
        is_below = value and override.key_or_group.startswith(swept)
        return f"{key}=choice({value})" if is_below else argument

    return [rewrite(argument) for argument in arguments]
