"""The facts at the top of a sweep's page: swept keys, protocol, budget and machine.

Their sources are the sweep's `multirun.yaml` and the first run's configuration and environment.
Missing facts are left out: folders of other sweepers and of older versions lack some files.
"""

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmnist_sweep.results import record
from fmnist_sweep.results.series import number
from fmnist_sweep.results.tables import Run

TEST_SELECTION = (
    "The validation images are the test images: what is selected on them says nothing "
    "about new images."
)


def settings(folder: Path) -> dict[str, Any]:
    """Return the configuration with which a sweep was last started, empty if it is missing."""
    return _yaml(folder / "multirun.yaml")


def configuration(run: Path) -> dict[str, Any]:
    """Return a run's whole configuration, empty if it is missing."""
    return _yaml(run / ".hydra/config.yaml")


def choices(run: Path) -> dict[str, str]:
    """Return the option that a run used of each config group, such as `optimizer: adam`."""
    found = pick(_yaml(run / ".hydra/hydra.yaml"), "hydra.runtime.choices")
    pairs = found.items() if isinstance(found, Mapping) else ()
    return {str(group): str(option) for group, option in pairs if option and "/" not in str(group)}


def pick(values: Mapping[str, Any], key: str, otherwise: Any = None) -> Any:
    """Return the value at a dotted key, or `otherwise` if the key is missing."""
    found: Any = values
    for part in key.split("."):
        found = found.get(part, otherwise) if isinstance(found, Mapping) else otherwise
    return found


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as a single mapping with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def ranges(folder: Path) -> dict[str, str]:
    """Return the ranges and choices of a sweep's command, by key."""
    started = settings(folder)
    params = pick(started, "hydra.sweeper.params") or {}
    found = dict(params) if isinstance(params, Mapping) else {}
    given = pick(started, "hydra.overrides.task")
    for text in given if isinstance(given, list) else []:
        key, _, value = str(text).lstrip("+").partition("=")
        if key in found or _A_RANGE.match(value):
            found[key] = value
    # One spacing, so that equal ranges are equal.
    return {str(k): re.sub(r"\s*,\s*", ", ", str(v)) for k, v in found.items()}


_A_RANGE = re.compile(r"(interval|range|choice|tag|int|float)\(|[^\[{']+,")


def is_confirmed(folder: Path) -> bool:
    """Return whether the sweep's winners were trained on fresh seeds."""
    return (folder / "confirm.json").exists()


def shown_path(folder: Path) -> str:
    """Return a path for a command, relative to the working directory if it lies below it."""
    here, absolute = Path.cwd(), folder.absolute()
    near = absolute.relative_to(here) if absolute.is_relative_to(here) else absolute
    return shlex.quote(str(near))


def is_selected_on_test(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration validates on the test images."""
    return bool(pick(config, "data.validation") == "test")


def facts(folder: Path, runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Return the page's facts, by heading and name; the last heading is for a confirmation."""
    config = configuration(runs[0].folder)
    return {
        "Swept": _swept(settings(folder), runs),
        "Data": _protocol(folder, config, runs),
        "Budget": _budget(runs),
        "Environment": _environment(runs),
        "Confirmed on fresh seeds": _confirmed(folder),
    }


def _swept(started: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, str]:
    rows = {}
    for key in dict.fromkeys(key for run in runs for key in run.params):
        values = [run.params[key] for run in runs if key in run.params]
        distinct = list(dict.fromkeys(values))
        if len(distinct) <= 8:
            rows[key] = ", ".join(map(str, _ordered(distinct)))
        elif all(number(value) is not None for value in distinct):
            rows[key] = f"{len(distinct)} values from {min(distinct):.4g} to {max(distinct):.4g}"
        else:
            rows[key] = f"{len(distinct)} values"
    names = {"sampler": "Sampler", "pruner": "Pruner"}
    for key, name in names.items():
        target = pick(started, f"hydra.sweeper.{key}._target_")
        if target:
            rows[name] = str(target).rsplit(".", 1)[-1].replace("NopPruner", "none")
    scheduler = pick(started, "hydra.sweeper.scheduler")
    if scheduler and isinstance(scheduler, Mapping):
        rows["Scheduler"] = ", ".join(
            [
                str(scheduler.get("kind", "asha")),
                *(f"{k} {v}" for k, v in scheduler.items() if k != "kind"),
            ]
        )
    command = pick(started, "hydra.overrides.task")
    if command and isinstance(command, list):
        rows["Overrides"] = " ".join(map(str, command))
    return rows


def _ordered(values: list[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return values


def _protocol(folder: Path, config: Mapping[str, Any], runs: Sequence[Run]) -> dict[str, str]:
    objectives = zip(runs[0].objective, runs[0].direction)
    rows = {"Objective": "; ".join(f"{direction} {name}" for name, direction in objectives)}
    about = _data(runs[0].folder)
    if data := _data_text(about):
        rows["Data set"] = data
    sizes = {run.summary["train_size"] for run in runs if run.summary.get("train_size")}
    if sizes:
        rows["Training examples"] = ", ".join(f"{size:,}" for size in sorted(sizes))
    classes, val_size = pick(config, "data.classes"), pick(config, "data.val_size")
    if classes and isinstance(classes, list):
        rows["Classes"] = ", ".join(map(str, classes)) + ": examples of others were left away"
    if is_selected_on_test(config):
        rows["Selected on"] = TEST_SELECTION
    elif about.get("own_validation") and pick(config, "data.validation") == "held_out":
        rows["Selected on"] = f"its own validation part; {_test_set(folder)}"
    elif val_size and isinstance(val_size, int | float):
        split = pick(config, "data.split_seed")
        shown = f"{val_size:,}" if val_size >= 1 else f"{val_size:.0%}"
        rows["Selected on"] = (
            f"{shown} of the training examples, held out (split_seed {split}); {_test_set(folder)}"
        )
    seeds = sorted({run.summary["seed"] for run in runs if run.summary.get("seed") is not None})
    if seeds:
        few = len(seeds) <= 8
        rows["Seeds"] = ", ".join(map(str, seeds)) if few else f"{len(seeds)} different"
    if repeats := {run.summary["repeats"] for run in runs if run.summary.get("repeats")}:
        rows["Repeats"] = ", ".join(map(str, sorted(repeats))) + " seeds a trial, mean ± std"
    return rows


def _test_set(folder: Path) -> str:
    """Say who has opened the test set."""
    opened = pick(_confirmation(folder), "test.opened_for")
    confirm = f"; confirm has, for selection {opened}" if isinstance(opened, int) else ""
    return f"the sweep has opened no test example{confirm}"


def confirmed_winner(folder: Path) -> int | None:
    """Return the number of the trial that `confirm` found best; None if there is none."""
    found = _confirmation(folder).get("candidates")
    first = found[0] if isinstance(found, list) and found else None
    name = first.get("name") if isinstance(first, Mapping) else None
    number = re.fullmatch(r"trial-(\d+)", str(name))
    return int(number[1]) if number else None


def _confirmation(folder: Path) -> dict[str, Any]:
    try:
        found = record.read_json(folder, "confirm.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _data(run: Path) -> Mapping[str, Any]:
    """Return what a run has on record about its data; earlier versions have nothing."""
    try:
        data = record.read_json(run, "environment.json").get("data")
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _data_text(data: Mapping[str, Any]) -> str | None:
    """Return a data set's name, the shape of its examples and the number of its classes."""
    shape, classes = data.get("shape"), data.get("classes")
    if not isinstance(shape, list) or not isinstance(classes, list):
        return None
    sides = " x ".join(map(str, shape))
    return f"{data.get('name')}: examples of {sides}, {len(classes):,} classes"


def _budget(runs: Sequence[Run]) -> dict[str, str]:
    states = Counter(run.state.lower() for run in runs)
    # A trial's history holds means over its repeats: each repeat trained that many epochs.
    spent = {run.trial: len(run.history) * (run.summary.get("repeats") or 1) for run in runs}
    epochs = sum(spent.values())
    seconds = sum(number(run.summary.get("seconds")) or 0.0 for run in runs)
    images = sum(spent[run.trial] * (run.summary.get("train_size") or 0) for run in runs)
    rows = {"Trials": ", ".join(f"{count} {state}" for state, count in states.items())}
    rows["Epochs"] = f"{epochs:,}"
    if seconds:
        rows["Training and validation"] = duration(seconds)
    if images and seconds:
        rows["Examples"] = f"{images:,} ({images / seconds:,.0f} a second)"
    return rows


def _environment(runs: Sequence[Run]) -> dict[str, str]:
    found = []
    for run in runs:
        try:
            found.append(record.read_json(run.folder, "environment.json"))
        except (OSError, ValueError):
            continue
    if not found:
        return {}
    rows = {
        "Device": found[0].get("device_name") or found[0].get("device"),
        "Threads": found[0].get("threads"),
        "Processor": found[0].get("processor"),
        "Cores": found[0].get("cores"),
        "Python": found[0].get("python"),
        "PyTorch": pick(found[0], "versions.torch"),
        "Commit": found[0].get("git_commit"),
        "Command": found[0].get("command"),
    }
    distinct = {str([e.get(key) for key in ("processor", "device", "versions")]) for e in found}
    if len(distinct) > 1:
        rows["Note"] = f"{len(distinct)} different environments; these are the first trial's"
    if found[0].get("git_dirty"):
        rows["Commit"] = f"{rows['Commit']}, with changes that were not committed"
    return {name: str(value) for name, value in rows.items() if value is not None}


def _confirmed(folder: Path) -> dict[str, str]:
    """Return the result in `confirm.json`, empty without that file."""
    found = _confirmation(folder)
    try:
        rows = {"Fresh seeds": " ".join(found.get("sentences") or [])}
        accuracy = number(pick(found, "test.accuracy.mean"))
        if accuracy is not None:
            spread = number(pick(found, "test.accuracy.std"))
            text = f"{accuracy:.2%}" + ("" if spread is None else f" ± {100 * spread:.2f} points")
            seen = "all training examples" if pick(found, "test.refit") else "the sweep's examples"
            rows["Test accuracy"] = (
                f"{text} over {pick(found, 'test.accuracy.n')} seeds, trained on {seen}"
            )
        return {name: text for name, text in rows.items() if text}
    except (ValueError, TypeError):
        return {}


def duration(seconds: float) -> str:
    """Return a duration as text: `12.3 s`, `4 min 5 s`, `2 h 10 min`."""
    if seconds < 60 or math.isinf(seconds):
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _yaml(path: Path) -> dict[str, Any]:
    try:
        values = record.read_yaml(path)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
