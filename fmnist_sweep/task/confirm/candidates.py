"""Which configurations of a sweep are trained again."""

import copy
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.results import record
from fmnist_sweep.results.facts import pick
from fmnist_sweep.results.ranking import ranked
from fmnist_sweep.results.series import number, objective
from fmnist_sweep.results.tables import Run
from fmnist_sweep.task.config import Config, parse

FIRST_SEED = 1000  # far from what people give by hand
_LONGEST_CHAIN = 10  # of references to references
_NOTHING = object()  # where null may stand


@dataclass(frozen=True)
class Candidate:
    """A configuration, its seed apart.

    name: `trial-7`, or `baseline` where no trial of the sweep had the default configuration.
    params: the swept keys' values.
    value: what the search found by the metric, the mean over its runs of this configuration; None
        for a baseline that was no trial.
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


def candidates(folder: Path, runs: Sequence[Run], top: int, metric: str) -> list[Candidate]:
    """The sweep's best configurations, best first, and its baseline.

    Args:
        top: how many, the baseline not counted unless it is one of them.
        metric: what each will have found of; best is what the sweep's objective says.

    Raises:
        ConfigError, RecordError: no trial is complete, or a configuration cannot be read.
    """
    groups: dict[str, list[Run]] = {}
    for run in ranked(runs):
        if run.state == "COMPLETE" and objective(run) is not None:
            groups.setdefault(repr(sorted(_seedless(run).items())), []).append(run)
    if not groups:
        raise ConfigError(f"{folder}: no trial is complete: there is nothing to confirm")
    ordered = list(groups.values())
    if len(runs[0].objective) == 1:
        ordered.sort(key=_mean_objective, reverse=runs[0].direction[0] == "maximize")
    found = [_candidate(group, metric) for group in ordered]
    best = found[:top]
    if not any(one.is_baseline for one in best):
        base = next((one for one in found if one.is_baseline), None)
        base = base or _composed_baseline(folder, found[0])
        best += [base] if base else []
    return best


def _seedless(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.params.items() if key != run.seed_key}


def _mean_objective(group: Sequence[Run]) -> float:
    return statistics.fmean(value for run in group if (value := objective(run)) is not None)


def _candidate(group: Sequence[Run], metric: str) -> Candidate:
    values = [value for run in group if (value := number(run.summary.get(metric))) is not None]
    run = min(group, key=lambda one: one.trial)
    return Candidate(
        name=f"trial-{run.trial}",
        params=_seedless(run),
        value=statistics.fmean(values) if values else None,
        is_baseline=any(one.default for one in group),
        values=_configuration(run.folder),
        run=run.folder,
    )


def _configuration(run: Path) -> dict[str, Any]:
    path = run / ".hydra/config.yaml"
    try:
        values = record.read_yaml(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}: this trial cannot be repeated") from None
    if not isinstance(values, dict) or not isinstance(values.get("data"), dict):
        raise ConfigError(f"{path}: no configuration")
    return _resolved({key: value for key, value in values.items() if key != "hydra"}, path)


def _resolved(values: dict[Any, Any], path: Path) -> dict[str, Any]:
    """The configuration with `${key}` replaced by what stands there.

    Not by OmegaConf, whose interpolations can read the environment and can stand for more than
    memory holds: the folder may be somebody else's.
    """

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): resolved(each) for key, each in value.items()}
        if isinstance(value, list):
            return [resolved(each) for each in value]
        return referred(value) if isinstance(value, str) and "${" in value else value

    def referred(value: str) -> Any:
        followed: Any = value
        for _ in range(_LONGEST_CHAIN):
            reference = re.fullmatch(r"\$\{([\w.]+)\}", followed)
            if not reference:
                break
            followed = pick(values, reference[1], _NOTHING)
            if followed is _NOTHING or isinstance(followed, dict | list):
                break
            if not isinstance(followed, str) or "${" not in followed:
                return followed
        raise ConfigError(
            f"{path}: {value[:200]}: only ${{another.key}} that holds a plain value can be "
            "followed; this trial cannot be repeated"
        )

    plain: dict[str, Any] = resolved(values)
    return plain


def _composed_baseline(folder: Path, other: Candidate) -> Candidate | None:
    """The default configuration where the sweep did not try it: its swept keys put back.

    None where the sweep does not say what they were, as those of stock sweepers.
    """
    path = folder / "multirun.yaml"
    try:
        started = record.read_yaml(path)
    except OSError:
        return None
    if not isinstance(started, dict):
        raise ConfigError(f"{path}: no configuration")
    values = copy.deepcopy(dict(other.values))
    for key in other.params:
        value = pick(started, key, _NOTHING)
        if value is _NOTHING:
            return None
        # A swept group, such as optimizer=adam,sgd, is replaced as a whole.
        *sections, last = key.split(".")
        section = values
        for name in sections:
            if not isinstance(section.get(name), dict):
                section[name] = {}
            section = section[name]
        section[last] = value
    plain = _resolved(values, path)
    found = {key: pick(plain, key) for key in other.params}
    default = {k: "default" if isinstance(v, dict | list) else v for k, v in found.items()}
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
