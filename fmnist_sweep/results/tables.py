"""A sweep's tables, `sweep.csv` and `curves.csv`, made from the run folders alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmnist_sweep.base.errors import ReportError
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import record
from fmnist_sweep.results.metrics import EPOCH_METRICS

INTEGER_COLUMNS = ("best_epoch", "kept_epoch", "epochs", "seed", "repeats")
# Only in tables of this package's own training, not of another application's.
QUALITY_COLUMNS = (*EPOCH_METRICS, "best_val_accuracy", "best_epoch", "kept_epoch")
TRAINING_COLUMNS = (*QUALITY_COLUMNS, "images_per_second")
LAST_COLUMNS = (
    *QUALITY_COLUMNS,
    "epochs",
    "seconds",
    "images_per_second",
    "seed",
    "run",
    "reason",
)

# Integers that fit a table's Int64 column and convert to a float without overflow.
_Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Value = bool | _Whole | float | str | None


class Pause(BaseModel):
    """A pause of a trial that has been resumed.

    epochs: the epochs, or steps, that it had been trained by then.
    started, ended: when the part of the training before the pause began and ended, in seconds since
        1970.
    """

    model_config = ConfigDict(strict=True)

    epochs: _Whole
    started: float
    ended: float


class _TrialFile(BaseModel):
    """The required content of `trial.json`, which another program may have written."""

    model_config = ConfigDict(strict=True)

    params: dict[str, _Value]
    default: bool
    objective: Annotated[list[str], Field(min_length=1)]
    direction: Annotated[list[Literal["minimize", "maximize"]], Field(min_length=1)]
    seed_key: str | None = "seed"
    pauses: list[Pause] = []


class _SummaryFile(BaseModel):
    """The required content of `summary.json`; numbers may be absent."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, _Value]

    state: Literal["COMPLETE", "PAUSED", "PRUNED", "FAILED"]
    reason: str | None = None
    train_loss: float | None = None
    train_accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
    val_balanced_accuracy: float | None = None
    val_macro_f1: float | None = None
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
    """A finished or paused run of a sweep.

    state: COMPLETE, PAUSED, PRUNED or FAILED.
    params: the values of the swept keys.
    default: whether the values are the keys' defaults.
    objective, direction: the columns that the sweep optimises, and for each minimize or maximize.
    seed_key: the key in which runs of the same configuration differ, or None.
    metrics: the last values that another application's training reported or returned, by name.
    pauses: those after which it was resumed.
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
    pauses: Sequence[Pause] = ()

    @property
    def values(self) -> list[Any]:
        """The values of the objectives; they may be None in a failed or pruned run."""
        return [self.figure(name) for name in self.objective]

    def figure(self, name: str) -> Any:
        """Return a figure of the final row, or None if the row lacks it."""
        return self.summary.get(name, self.metrics.get(name))


def step_name(runs: Sequence[Run]) -> str:
    """Return what the runs' histories count: `epoch` or `step`."""
    first = next((run.history[0] for run in runs if run.history), {"epoch": 0})
    return next(iter(first))


class Sweep:
    """The finished and paused runs of a sweep folder, each read only once in each state.

    Raises:
        ReportError: the folder does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[int, Run] = {}
        if not folder.is_dir():
            raise ReportError(f"{folder}: no such folder")

    def update(self) -> list[Run]:
        """Read the runs that have finished or been paused since the last call.

        Returns:
            The new runs, by trial.

        Raises:
            ReportError: a file of a run is missing, torn or invalid.
        """
        new = []
        for trial, folders in record.attempts(self.folder).items():
            latest = self.runs.get(trial)
            for folder in reversed(folders):
                if latest and latest.folder == folder and not _goes_on(latest):
                    break
                if run := self.add(trial, folder):
                    new.append(run)
                    break
        if any(not (run.folder / "trial.json").exists() for run in new):
            self.runs = _drop_constant_params(self.runs)
        return new

    def add(self, trial: int, folder: Path) -> Run | None:
        """Read a run; return None if it has not finished.

        Raises:
            ReportError: a file of the run is missing, torn or invalid.
        """
        try:
            run = read_run(trial, folder)
        except (OSError, ValueError) as error:
            raise ReportError(f"{folder}: not a run: {error}") from None
        if run:
            self.runs[trial] = run
        return run

    def sweep_table(self) -> pd.DataFrame:
        """Return one row per trial, by trial; accuracies in [0, 1], losses in nats, times in s."""
        runs = [self.runs[trial] for trial in sorted(self.runs)]
        keys = dict.fromkeys(key for run in runs for key in run.params)
        names = dict.fromkeys(name for run in runs for name in _objective_columns(run))
        names |= dict.fromkeys(name for run in runs for name in _pause_column(run))
        metrics = dict.fromkeys(name for run in runs for name in run.metrics)
        is_own = not metrics or any(
            name in run.summary for run in runs for name in TRAINING_COLUMNS
        )
        tail = [name for name in LAST_COLUMNS if is_own or name not in TRAINING_COLUMNS]
        rows = [
            {
                **run.metrics,
                **{column: run.summary.get(column) for column in tail},
                "trial": run.trial,
                "state": run.state,
                **run.params,
                **_objective_columns(run),
                **_pause_column(run),
                "epochs": len(run.history),
                "run": run.folder.name,
            }
            for run in runs
        ]
        columns = dict.fromkeys(["trial", "state", *keys, *names, *metrics, *tail])
        table = pd.DataFrame(rows, columns=list(columns))
        return table.astype(
            {name: "Int64" for name in INTEGER_COLUMNS if name in table and name not in keys}
        )

    def curves_table(self) -> pd.DataFrame:
        """Return one row per trial and epoch or step, by trial."""
        rows = [
            {"trial": trial, **row}
            for trial in sorted(self.runs)
            for row in self.runs[trial].history
        ]
        names = dict.fromkeys(name for row in rows for name in row)
        return pd.DataFrame(rows, columns=list(names) or ["trial", *record.EPOCH_COLUMNS])

    def write(self) -> None:
        """Write `sweep.csv` and `curves.csv` into the sweep's folder, with all digits."""
        for name, table in (("sweep", self.sweep_table()), ("curves", self.curves_table())):
            write_atomically(self.folder / f"{name}.csv", as_csv(table))


def as_csv(table: pd.DataFrame) -> str:
    """Return a table as CSV, numbers with all their digits and text without formulas."""
    texts = table.select_dtypes(exclude="number").columns
    safe = table.assign(**{name: table[name].map(record.escape_csv_formula) for name in texts})
    return safe.rename(columns=record.escape_csv_formula).to_csv(index=False, lineterminator="\n")


def read_run(trial: int, folder: Path) -> Run | None:
    """Read a run folder; None if the run has not finished.

    Raises:
        OSError, ValueError: a file is missing, torn or invalid.
    """
    summary = record.summary(folder)
    if summary is None:
        return None
    try:
        trial_values = record.read_json(folder, "trial.json")
    except FileNotFoundError:
        trial_values = _trial_file_of_other_sweepers(folder)
    try:
        history = record.read_history(folder)
    except FileNotFoundError:
        history = []
    try:
        trial_file = _TrialFile.model_validate(trial_values)
        summary_file = _SummaryFile.model_validate(summary)
    except ValidationError as error:
        fault = error.errors()[0]
        key = " ".join(".".join(map(str, fault["loc"])).split())
        raise ValueError(f"{key}: {fault['msg'].lower()}") from None
    return Run(
        trial=trial,
        state=summary_file.state,
        # As text, since an empty cell in a table means that the trial lacks the key.
        params={k: "null" if value is None else value for k, value in trial_file.params.items()},
        default=trial_file.default,
        objective=trial_file.objective,
        direction=trial_file.direction,
        summary=summary,
        metrics=summary_file.metrics,
        history=history,
        folder=folder,
        seed_key=trial_file.seed_key,
        pauses=trial_file.pauses,
    )


def _goes_on(run: Run) -> bool:
    """Return whether a run was paused when it was read, and no longer is or has come further."""
    if run.state != "PAUSED":
        return False
    now = record.summary(run.folder)
    return now is not None and now != run.summary


def _trial_file_of_other_sweepers(folder: Path) -> dict[str, Any]:
    """Make the content of `trial.json` from the overrides, for sweepers that do not write it."""
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
    """Parse an override's value; YAML would read 1e-4 as text."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text.lower(), text)


def _drop_constant_params(runs: Mapping[int, Run]) -> dict[int, Run]:
    """Keep the params that differ between runs: other sweepers do not record which they swept.

    If none differs, for instance because a sampler drew the same choice each time, keep all.
    """
    values: dict[str, set[str]] = {}
    for run in runs.values():
        for key, value in run.params.items():
            values.setdefault(key, set()).add(str(value))
    swept = {key for key, distinct in values.items() if len(distinct) > 1} or set(values)
    return {
        trial: replace(run, params={k: v for k, v in run.params.items() if k in swept})
        for trial, run in runs.items()
    }


def _pause_column(run: Run) -> dict[str, str]:
    """Return the column `paused_after` of a trial that was paused: epochs, such as `1 3`."""
    epochs = [pause.epochs for pause in run.pauses]
    if run.state == "PAUSED":
        epochs.append(len(run.history))
    return {"paused_after": " ".join(map(str, epochs))} if epochs else {}


def _objective_columns(run: Run) -> dict[str, Any]:
    """Return the column `objective`, or columns such as `objective_seconds` for several objectives.

    Repeats add columns for their number and standard deviations; the objectives are then means.
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
