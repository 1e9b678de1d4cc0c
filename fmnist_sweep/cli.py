"""What stands between a user's command line and a trial: checks, folders, errors as one line."""

import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import omegaconf
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fmnist_sweep import record
from fmnist_sweep.config import Config, ConfigError, parse
from fmnist_sweep.schema_errors import known_keys, nearest_key

# A sweep's folder: its name, or the time.
OmegaConf.register_resolver("either", lambda one, other: one or other, replace=True)


def parsed(config: DictConfig) -> Config:
    """Checks a composed configuration.

    Raises:
        ConfigError: one line for each wrong key.
    """
    task = {key: value for key, value in config.items_ex(resolve=False) if key != "hydra"}
    values = OmegaConf.to_container(OmegaConf.create(task), resolve=True)
    assert isinstance(values, dict)
    return parse({str(key): value for key, value in values.items()})


class PrepareRun(Callback):
    """Before a single run: checks its configuration, then makes it a folder of its own."""

    hold: record.Hold | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        # Hydra turns a callback's exceptions into warnings, all but SystemExit.
        try:
            self._prepare(config)
        except ConfigError as error:
            sys.exit(str(error))
        except OSError as error:
            sys.exit(f"hydra.run.dir={config.hydra.run.dir}: {error.strerror}")
        except Exception:
            traceback.print_exc()
            sys.exit(1)

    def _prepare(self, config: DictConfig) -> None:
        from fmnist_sweep import build, trial

        checked = parsed(config)
        build.check(checked)
        folder = Path(config.hydra.run.dir)
        if any(override.startswith("hydra.run.dir=") for override in config.hydra.overrides.hydra):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self.hold = record.Hold(folder)
            except BlockingIOError:
                raise ConfigError(
                    f"hydra.run.dir={folder}: another process trains there; name another folder"
                ) from None
            try:
                trial.check_folder(checked, folder)
            except ConfigError as error:
                raise ConfigError(f"hydra.run.dir={error}") from None
            return
        folder = record.reserve(folder)
        self.hold = record.Hold(folder)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.run.dir = str(folder)

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        self.hold = None


def with_clear_errors(command: Callable[[], Any]) -> None:
    """Runs a command; a user's mistake is one line on standard error and exit code 1."""
    wants_traceback = os.environ.setdefault("HYDRA_FULL_ERROR", "1") == "1"
    try:
        command()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = in_a_line(error)
        if line is None:
            raise
        sys.exit(line)
    finally:
        if wants_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def in_a_line(error: BaseException) -> str | None:
    """What to tell the user of an error, or None for a fault of ours."""
    if _is_of_hydra(error):
        return hydra_line(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return hydra_line(error)
    if isinstance(error, YAMLError):
        return "YAML: " + " ".join(str(error).split())
    if record.is_disk_fault(error):
        return f"{error}; what has finished is kept"
    known = {"ConfigError", "DataError", "RecordError", "ReportError", "TrialFailed"}
    return str(error) if type(error).__name__ in known else None


def _is_of_hydra(error: BaseException) -> bool:
    """Whether Hydra itself has raised it, as of an override without a key."""
    trace = traceback.extract_tb(error.__traceback__)
    packages = [Path(module.__file__).parent for module in (hydra, omegaconf) if module.__file__]
    return bool(trace) and any(map(Path(trace[-1].filename).is_relative_to, packages))


def hydra_line(error: BaseException) -> str:
    """An error of Hydra's or OmegaConf's in one line, with the nearest key for an unknown one."""
    cause = error.__cause__
    text = f"{error}\n{cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and "not in struct" in text:
        key = getattr(cause, "full_key", None) or unknown[1]
        section, siblings = key.rpartition(".")[0], getattr(cause, "parent_node", None) or ()
        beside = [f"{section}.{name}".lstrip(".") for name in siblings]
        known = set(known_keys(Config))
        if key in known:  # but of another option of its group, as a ResNet has no dropout
            names = ", ".join(str(name) for name in siblings if name != "_target_")
            return f"{key}: not with this {section}, which has {names}"
        return f"{key}: no such key{nearest_key(key, [*sorted(known), *beside])}"
    text = text.partition("Config search path:")[0]
    lines = (line.strip() for line in text.splitlines())
    return " ".join(line for line in lines if line and not line.startswith(("object_type", "full")))
