"""The configurations of a sweep that are trained again."""

import copy
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fmnist_sweep.base.errors import ConfigError, RecordError
from fmnist_sweep.results import lineage, record
from fmnist_sweep.results.facts import pick
from fmnist_sweep.results.keys import put
from fmnist_sweep.results.ranking import ranked
from fmnist_sweep.results.series import number, objective
from fmnist_sweep.results.tables import Run
from fmnist_sweep.task.config import Config, parse

FIRST_SEED = 1000  # far from what people give by hand
_LONGEST_CHAIN = 10  # of references to references
_NOTHING = object()  # distinct from null


@dataclass(frozen=True)
class Candidate:
    """A configuration without its seed.

    name: `trial-7`, or `baseline` if no trial of the sweep had the default configuration.
    params: the swept keys and their values.
    value: the metric in the search, averaged over the runs of this configuration; None for a
        baseline that was no trial.
    values: the composed configuration; empty for another application's.
    run: the run folder that the configuration was read from.
    seed_key: the key of the seed.
    overrides: for another application, the overrides that make the configuration.
    is_schedule: it is the schedule that a population's trial went through.
    """

    name: str
    params: Mapping[str, Any]
    value: float | None
    is_baseline: bool
    values: Mapping[str, Any]
    run: Path
    seed_key: str = "seed"
    overrides: Sequence[str] = ()
    is_schedule: bool = False

    def config(self, seeds: Sequence[int], **data: Any) -> Config:
        """Return the configuration with consecutive seeds; `data` replaces keys of that section.

        Raises:
            ConfigError: this version does not accept the configuration.
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
    """Return the best configurations of a sweep, best first, and its baseline.

    Args:
        top: the number of configurations; the baseline adds one unless it is among them.
        metric: the figure that each candidate carries. The sweep's objective ranks them.

    Raises:
        ConfigError, RecordError: no trial has a result, or a configuration cannot be read.
    """
    groups = _by_configuration(folder, runs)
    found = [_candidate(group, metric) for group in groups]
    return _with_baseline(found, top, lambda: _composed_baseline(folder, found[0]))


def application_candidates(
    folder: Path, runs: Sequence[Run], top: int, metric: str
) -> list[Candidate]:
    """Return the candidates of another application, each defined by its overrides."""
    found = []
    for group in _by_configuration(folder, runs):
        run = group[0]
        if run.seed_key is None:
            raise ConfigError(f"{folder}: names no key of a seed; hydra.sweeper.seed_key does")
        found.append(
            replace(
                _summary(group, metric),
                seed_key=run.seed_key,
                overrides=overrides_of(run.folder, without=[run.seed_key]),
            )
        )

    def default() -> Candidate:
        first = found[0]
        rest = overrides_of(first.run, without=[first.seed_key, *first.params])
        params = dict.fromkeys(first.params, "default")
        return Candidate("baseline", params, None, True, {}, first.run, first.seed_key, rest)

    return _with_baseline(found, top, default)


def _by_configuration(folder: Path, runs: Sequence[Run]) -> list[list[Run]]:
    """Group the runs that differ in their seed alone, best group first.

    Complete runs come first. A scheduler leaves few of them; then come the runs that were paused or
    pruned, those with the most epochs first.
    """
    complete: dict[str, list[Run]] = {}
    stopped: dict[str, list[Run]] = {}
    for run in ranked(runs):
        if run.state == "FAILED" or objective(run) is None:
            continue
        groups = complete if run.state == "COMPLETE" else stopped
        groups.setdefault(repr(sorted(_seedless(run).items())), []).append(run)
    if not complete and not stopped:
        raise ConfigError(f"{folder}: no trial has a result: there is nothing to confirm")
    rest = [group for key, group in stopped.items() if key not in complete]
    rest.sort(key=lambda group: -max(len(run.history) for run in group))
    ordered = list(complete.values())
    if len(runs[0].objective) == 1:
        ordered.sort(key=_mean_objective, reverse=runs[0].direction[0] == "maximize")
    return ordered + rest


def _with_baseline(
    found: Sequence[Candidate], top: int, compose: Callable[[], Candidate | None]
) -> list[Candidate]:
    best = list(found[:top])
    if not any(candidate.is_baseline for candidate in best):
        baseline = next((candidate for candidate in found if candidate.is_baseline), None)
        baseline = baseline or compose()
        best += [baseline] if baseline else []
    return best


def _seedless(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.params.items() if key != run.seed_key}


def _mean_objective(group: Sequence[Run]) -> float:
    return statistics.fmean(value for run in group if (value := objective(run)) is not None)


def _candidate(group: Sequence[Run], metric: str) -> Candidate:
    candidate = _summary(group, metric)
    params, values = _params_and_values(candidate.run)
    if params is None:
        return replace(candidate, values=values)
    return replace(candidate, params=params, values=values, is_schedule=True)


def configuration(run: Path) -> dict[str, Any]:
    """Return the configuration of a run; of a population's trial, its schedule.

    Args:
        run: the run folder.

    Raises:
        ConfigError, RecordError: it cannot be read.
    """
    return _params_and_values(run)[1]


def _params_and_values(run: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """Return a run's configuration, and the first values of its schedule, if it has one."""
    values = _configuration(run)
    rows = lineage.read(run.parent)
    if not rows:
        return None, values
    trial = record.read_json(run, "trial.json")["trial"]
    (_, params), *changes = lineage.schedule(rows, trial).items()
    for key, value in params.items():
        put(values, key, value)
    values["scheduler"] = {"kind": "piecewise", "changes": dict(changes)}
    return params, values


def _summary(group: Sequence[Run], metric: str) -> Candidate:
    values = [value for run in group if (value := number(run.figure(metric))) is not None]
    run = min(group, key=lambda run: run.trial)
    return Candidate(
        name=f"trial-{run.trial}",
        params=_seedless(run),
        value=statistics.fmean(values) if values else None,
        is_baseline=any(run.default for run in group),
        values={},
        run=run.folder,
    )


def overrides_of(run: Path, without: Sequence[str]) -> list[str]:
    """Read the overrides that a run was composed with, those of some keys left out.

    Raises:
        RecordError: the file is missing or holds something else.
    """
    path = run / ".hydra/overrides.yaml"
    try:
        lines = record.read_yaml(path)
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}: this trial cannot be repeated") from None
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise RecordError(f"{path}: not a list of overrides")
    keys = [line.lstrip("+~").partition("=")[0] for line in lines]
    if any(key.startswith(("hydra.", "hydra/")) for key in keys):
        raise RecordError(f"{path}: overrides Hydra's own configuration, which no run's file does")
    return [line for key, line in zip(keys, lines) if key not in without]


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
    """Replace each `${key}` by the value of that key.

    OmegaConf is not used: its interpolations can read the environment and expand beyond memory,
    and the folder may be somebody else's.
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
    """Compose the default configuration that the sweep did not try, by resetting the swept keys.

    Return None if the sweep does not record their defaults, as stock sweepers do not.
    """
    path = folder / "multirun.yaml"
    try:
        started = record.read_yaml(path)
    except OSError:
        return None
    if not isinstance(started, dict):
        raise ConfigError(f"{path}: no configuration")
    values = copy.deepcopy(dict(other.values))
    for key in (*other.params, *(["scheduler"] if other.is_schedule else [])):
        value = pick(started, key, _NOTHING)
        if value is _NOTHING:
            return None
        # A swept group, such as optimizer=adam,sgd, is replaced as a whole.
        put(values, key, value)
    plain = _resolved(values, path)
    found = {key: pick(plain, key) for key in other.params}
    default = {k: "default" if isinstance(v, dict | list) else v for k, v in found.items()}
    return Candidate("baseline", default, None, True, plain, other.run)


def fresh_seeds(runs: Sequence[Run], count: int) -> list[int]:
    """Return consecutive seeds that no trial of the sweep was trained with, always the same."""
    used = []  # half-open ranges, as a file may claim any number of repeats
    for run in runs:
        first, repeats = run.summary.get("seed"), run.summary.get("repeats") or 1
        if first is not None:
            used.append((first, first + repeats))
    start = FIRST_SEED
    while taken := [end for first, end in used if first < start + count and start < end]:
        start = max(taken)
    return list(range(start, start + count))
