"""Which configurations of a sweep are trained again."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fmnist_sweep import record
from fmnist_sweep.config import Config, ConfigError, parse
from fmnist_sweep.report.ranking import ranked
from fmnist_sweep.report.series import objective
from fmnist_sweep.report.tables import Run

FIRST_SEED = 1000  # far from what people give by hand


@dataclass(frozen=True)
class Candidate:
    """A configuration, its seed apart.

    name: `trial-7`, or `baseline` where no trial of the sweep had the default configuration.
    params: the swept keys' values.
    value: what the search found, the mean over its runs of this configuration; None for a
        baseline that was no trial.
    values: the whole composed configuration.
    run: the run folder that it was read from.
    """

    name: str
    params: Mapping[str, Any]
    value: float | None
    is_baseline: bool
    values: Mapping[str, Any]
    run: Path

    def config(self, seeds: Sequence[int], **data: Any) -> Config:
        """The configuration on other seeds, in a row; `data` replaces keys of its section `data`.

        Raises:
            ConfigError: the run's configuration is none of this version's.
        """
        changed = {
            **self.values,
            "seed": seeds[0],
            "repeats": len(seeds),
            "data": {**self.values["data"], **data},
        }
        try:
            return parse(changed)
        except ConfigError as error:
            raise ConfigError(f"{self.run}/.hydra/config.yaml: {error}") from None


def candidates(folder: Path, runs: Sequence[Run], top: int) -> list[Candidate]:
    """The sweep's best configurations, best first, and its baseline.

    Args:
        top: how many, the baseline not counted unless it is one of them.

    Raises:
        ConfigError, RecordError: no trial is complete, or a configuration cannot be read.
    """
    groups: dict[str, list[Run]] = {}
    for run in ranked(runs):
        if run.state == "COMPLETE" and objective(run) is not None:
            groups.setdefault(repr(sorted(_seedless(run).items())), []).append(run)
    if not groups:
        raise ConfigError(f"{folder}: no trial is complete: there is nothing to confirm")
    found = [_candidate(group) for group in groups.values()]
    if len(runs[0].objective) == 1:
        sign = 1 if runs[0].direction[0] == "maximize" else -1
        found.sort(key=lambda one: -sign * (one.value or 0.0))
    best = found[:top]
    if not any(one.is_baseline for one in best):
        base = next((one for one in found if one.is_baseline), None)
        base = base or _composed_baseline(folder, found[0])
        best += [base] if base else []
    return best


def _seedless(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.params.items() if key != "seed"}


def _candidate(group: Sequence[Run]) -> Candidate:
    values = [value for run in group if (value := objective(run)) is not None]
    run = min(group, key=lambda one: one.trial)
    return Candidate(
        name=f"trial-{run.trial}",
        params=_seedless(run),
        value=statistics.fmean(values),
        is_baseline=any(one.default for one in group),
        values=_configuration(run.folder),
        run=run.folder,
    )


def _configuration(run: Path) -> dict[str, Any]:
    path = run / ".hydra/config.yaml"
    try:
        values = OmegaConf.to_container(_loaded(path), resolve=True)
    except record.RecordError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: this trial cannot be repeated") from None
    except Exception as error:  # torn YAML has errors of several libraries
        raise _no_configuration(path, error) from None
    if not isinstance(values, dict) or not isinstance(values.get("data"), dict):
        raise ConfigError(f"{path}: no configuration")
    return {str(key): value for key, value in values.items() if key != "hydra"}


def _loaded(path: Path) -> Any:
    record.read_yaml(path)  # refuses aliases, which OmegaConf would write out one by one
    return OmegaConf.load(path)


def _no_configuration(path: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{path}: no configuration: {' '.join(str(error).split())}")


def _composed_baseline(folder: Path, other: Candidate) -> Candidate | None:
    """The default configuration where the sweep did not try it: its swept keys put back.

    None where the sweep does not say what they were, as those of stock sweepers.
    """
    path = folder / "multirun.yaml"
    config = OmegaConf.create(dict(other.values))
    default = {}
    try:
        started = _loaded(path)
        assert isinstance(started, DictConfig), "it has no keys"
        for key in other.params:
            value = OmegaConf.select(started, key)
            if value is None:
                return None
            # A swept group, such as optimizer=adam,sgd, is replaced as a whole.
            OmegaConf.update(config, key, value, merge=False, force_add=True)
            default[key] = value if not OmegaConf.is_config(value) else "default"
        values = OmegaConf.to_container(config, resolve=True)
    except OSError:
        return None
    except record.RecordError:
        raise
    except Exception as error:  # torn YAML has errors of several libraries
        raise _no_configuration(path, error) from None
    assert isinstance(values, dict)
    plain = {str(key): value for key, value in values.items()}
    return Candidate("baseline", default, None, True, plain, other.run)


def fresh_seeds(runs: Sequence[Run], count: int) -> list[int]:
    """Seeds in a row, none of which a trial of the sweep was trained with; always the same."""
    used = []  # as ends: there may be any number of repeats, whatever wrote the file
    for run in runs:
        first, repeats = run.summary.get("seed"), run.summary.get("repeats") or 1
        if first is not None:
            used.append((first, first + repeats))
    start = FIRST_SEED
    while taken := [end for first, end in used if first < start + count and start < end]:
        start = max(taken)
    return list(range(start, start + count))
