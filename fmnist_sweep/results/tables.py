"""A sweep's tables, made from its run folders alone: `sweep.csv` and `curves.csv`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmnist_sweep.base.errors import ReportError
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import record

METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "best_val_accuracy")
INTEGERS = ("best_epoch", "kept_epoch", "epochs", "seed", "repeats")
# Of our own training; a table of another application's runs has none of them.
OWN = (*METRICS, "best_epoch", "kept_epoch", "images_per_second")
TAIL = (
    *METRICS,
    "best_epoch",
    "kept_epoch",
    "epochs",
    "seconds",
    "images_per_second",
    "seed",
    "run",
    "reason",
)


# What a table's column of integers can hold, and a float without overflow.
_Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Value = bool | _Whole | float | str | None


class _Note(BaseModel):
    """What must be in `trial.json`, which may be somebody else's."""

    model_config = ConfigDict(strict=True)

    params: dict[str, _Value]
    default: bool
    objective: Annotated[list[str], Field(min_length=1)]
    direction: Annotated[list[Literal["minimize", "maximize"]], Field(min_length=1)]
    seed_key: str | None = "seed"


class _Row(BaseModel):
    """What must be in `summary.json`; numbers that it has not are missing."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, _Value]

    state: Literal["COMPLETE", "PRUNED", "FAILED"]
    reason: str | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    best_val_accuracy: float | None = None
    test_accuracy: float | None = None
    best_epoch: _Whole | None = None
    kept_epoch: _Whole | None = None
    epochs: _Whole | None = None
    seed: _Whole | None = None
    repeats: Annotated[_Whole, Field(ge=1)] | None = None
    train_size: _Whole | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    started: float | None = None
    ended: float | None = None
    metrics: dict[str, _Value] = {}


@dataclass(frozen=True)
class Run:
    """A finished run of a sweep.

    state: COMPLETE, PRUNED or FAILED.
    params: the swept keys' values.
    default: whether these are what the keys have without the sweep.
    objective: names of the columns that the sweep optimises, and with them `direction`.
    seed_key: the key in which runs of one configuration differ, if there is one.
    metrics: the last values of what an application of its own has reported or returned, by name.
    """

    trial: int
    state: str
    params: Mapping[str, Any]
    default: bool
    objective: list[str]
    direction: Sequence[str]
    summary: Mapping[str, Any]
    history: list[dict[str, float]]
    folder: Path
    seed_key: str | None = "seed"
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> list[Any]:
        """The objectives' values; a failed or pruned run's may be None."""
        return [self.figure(name) for name in self.objective]

    def figure(self, name: str) -> Any:
        """A figure of the final row; None where it has none of that name."""
        return self.summary.get(name, self.metrics.get(name))

    @property
    def label(self) -> str:
        """The swept values as a line."""
        return " ".join(f"{key}={value}" for key, value in self.params.items())


def step_name(runs: Sequence[Run]) -> str:
    """What the runs' histories count: `epoch` or `step`."""
    first = next((run.history[0] for run in runs if run.history), {"epoch": 0})
    return next(iter(first))


class Sweep:
    """The finished runs of a sweep folder; each is read once.

    Raises:
        ReportError: the folder is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[int, Run] = {}
        if not folder.is_dir():
            raise ReportError(f"{folder}: no such folder")

    def update(self) -> list[Run]:
        """Reads runs that have finished since the last time.

        Returns:
            The new ones, by trial.

        Raises:
            ReportError: a file of theirs is torn.
        """
        new = []
        for trial, folders in record.attempts(self.folder).items():
            latest = self.runs.get(trial)
            for folder in reversed(folders):
                if latest and latest.folder == folder:
                    break
                try:
                    run = read_run(trial, folder)
                except (OSError, ValueError) as error:
                    raise ReportError(f"{folder}: not a run: {error}") from None
                if run:
                    self.runs[trial] = run
                    new.append(run)
                    break
        if any(not (run.folder / "trial.json").exists() for run in new):
            self.runs = _without_shared(self.runs)
        return new

    def sweep_table(self) -> pd.DataFrame:
        """One row a trial, by trial; accuracies in [0, 1], losses in nats, times in seconds."""
        runs = [self.runs[trial] for trial in sorted(self.runs)]
        keys = dict.fromkeys(key for run in runs for key in run.params)
        names = dict.fromkeys(name for run in runs for name in _objective_columns(run))
        metrics = dict.fromkeys(name for run in runs for name in run.metrics)
        is_own = not metrics or any(name in run.summary for run in runs for name in OWN)
        tail = [name for name in TAIL if is_own or name not in OWN]
        rows = [
            {
                **run.metrics,
                **{column: run.summary.get(column) for column in tail},
                "trial": run.trial,
                "state": run.state,
                **run.params,
                **_objective_columns(run),
                "epochs": len(run.history),
                "run": run.folder.name,
            }
            for run in runs
        ]
        columns = dict.fromkeys(["trial", "state", *keys, *names, *metrics, *tail])
        table = pd.DataFrame(rows, columns=list(columns))
        return table.astype(
            {name: "Int64" for name in INTEGERS if name in table and name not in keys}
        )

    def curves_table(self) -> pd.DataFrame:
        """One row a trial and epoch, by trial."""
        rows = [
            {"trial": trial, **row}
            for trial in sorted(self.runs)
            for row in self.runs[trial].history
        ]
        names = dict.fromkeys(name for row in rows for name in row)
        return pd.DataFrame(rows, columns=list(names) or ["trial", *record.EPOCH_COLUMNS])

    def write(self) -> None:
        """Writes `sweep.csv` and `curves.csv` into the sweep's folder, with every digit."""
        for name, table in (("sweep", self.sweep_table()), ("curves", self.curves_table())):
            write_atomically(self.folder / f"{name}.csv", as_csv(table))


def as_csv(table: pd.DataFrame) -> str:
    """A table as text, with every digit and without formulas."""
    texts = table.select_dtypes(exclude="number").columns
    safe = table.assign(**{name: table[name].map(record.escape_csv_formula) for name in texts})
    return safe.rename(columns=record.escape_csv_formula).to_csv(index=False, lineterminator="\n")


def read_run(trial: int, folder: Path) -> Run | None:
    """Reads a run folder; None for one that has not finished.

    Raises:
        OSError, ValueError: a file is missing, torn or not what it should be.
    """
    summary = record.summary(folder)
    if summary is None:
        return None
    try:
        note = record.read_json(folder, "trial.json")
    except FileNotFoundError:
        note = _stock_note(folder)
    try:
        history = record.read_history(folder)
    except FileNotFoundError:
        history = []
    try:
        said = _Note.model_validate(note)
        row = _Row.model_validate(summary)
    except ValidationError as error:
        fault = error.errors()[0]
        key = " ".join(".".join(map(str, fault["loc"])).split())
        raise ValueError(f"{key}: {fault['msg'].lower()}") from None
    return Run(
        trial=trial,
        state=row.state,
        # A value like any other, where a table's empty cell is a key that was not there.
        params={key: "null" if value is None else value for key, value in said.params.items()},
        default=said.default,
        objective=said.objective,
        direction=said.direction,
        summary=summary,
        metrics=row.metrics,
        history=history,
        folder=folder,
        seed_key=said.seed_key,
    )


def _stock_note(folder: Path) -> dict[str, Any]:
    """What `trial.json` would say, for a run of a sweeper that writes none."""
    path = folder / ".hydra/overrides.yaml"
    lines = record.read_yaml(path) or []
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{path}: not a list of overrides")
    pairs = [line.lstrip("+~").partition("=") for line in lines]
    return {
        "params": {key: _typed(text) for key, _, text in pairs},
        "default": False,
        "objective": ["val_accuracy"],
        "direction": ["maximize"],
    }


def _typed(text: str) -> Any:
    """An override's value; `yaml` would take 1e-4 for text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)


def _without_shared(runs: Mapping[int, Run]) -> dict[int, Run]:
    """Stock sweepers do not say which overrides were swept: those that differ between runs.

    Where none does, as when a sampler drew the same choice each time, all are kept.
    """
    values: dict[str, set[str]] = {}
    for run in runs.values():
        for key, value in run.params.items():
            values.setdefault(key, set()).add(str(value))
    swept = {key for key, some in values.items() if len(some) > 1} or set(values)
    return {
        trial: replace(run, params={k: v for k, v in run.params.items() if k in swept})
        for trial, run in runs.items()
    }


def _objective_columns(run: Run) -> dict[str, Any]:
    """`objective`, or `objective_seconds` and such where there are several.

    Of repeats the values are means; their number and standard deviations stand beside them.
    """
    single = len(run.objective) == 1
    columns: dict[str, Any] = {}
    for name, value in zip(run.objective, run.values):
        column = "objective" if single else f"objective_{name}"
        columns[column] = value
        if f"{name}_std" in run.summary:
            columns[f"{column}_std"] = run.summary[f"{name}_std"]
    if "repeats" in run.summary:
        columns["repeats"] = run.summary["repeats"]
    return columns
