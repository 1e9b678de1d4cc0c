"""One trial of a sweep, in whichever process the launcher runs it.

The job stands around the task that Hydra launches: when the task ends, however it ends, the run
folder is completed and only then is the study told.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fmnist_sweep import record
from fmnist_sweep.base import streams
from fmnist_sweep.base.errors import (
    ConfigError,
    ImpossibleTrial,
    MachineFault,
    StopSweep,
    TrialFailed,
    describe,
    is_machine_fault,
)
from fmnist_sweep.base.processes import end_with_launcher
from fmnist_sweep.record import Epoch
from fmnist_sweep.sweep import database, study
from fmnist_sweep.sweep.reporting import listener
from fmnist_sweep.sweep.settings import make_pruner
from fmnist_sweep.sweep.task import Task, task_of

log = logging.getLogger(__name__)


class TakenOver(KeyboardInterrupt):
    """Another process has taken this trial for abandoned and runs it again."""


@dataclass
class SweepJob:
    """A sweep's task function; travels to other processes by pickle, and they end with the sweep's.

    sweeper: the process that launches the trials.
    """

    task: Callable[[DictConfig], Any]
    address: database.Address
    objectives: list[str]
    pruner: Mapping[str, Any]
    sweeper: int = field(default_factory=os.getpid)

    @property
    def sweep_task(self) -> Task:
        """What the sweep may ask of the application."""
        return task_of(self.task)

    def __call__(self, config: DictConfig) -> None:
        if os.getpid() == self.sweeper:
            self._run(config)
            return
        end_with_launcher()
        streams.make_forgiving()
        try:
            self._run(config)
        except StopSweep as stop:  # launchers carry no interruptions
            raise MachineFault(str(stop)) from None

    def _run(self, config: DictConfig) -> None:
        silence_console()
        run = Path(HydraConfig.get().runtime.output_dir)
        number = record.read_json(run, "trial.json")["trial"]
        trial = RunningTrial(self, number, run)
        here = listener.set(trial)
        try:
            trial.finish(self.task(config))
        except optuna.TrialPruned as pruned:
            trial.end("PRUNED", str(pruned) or "pruned")
        except (Exception, SystemExit) as error:
            if is_machine_fault(error):
                raise StopSweep(describe(error)) from None
            reason = describe(error)
            log.error("Trial %d failed: %s", number, reason)
            trial.end("FAILED", reason)
            kind = ImpossibleTrial if isinstance(error, ConfigError) else TrialFailed
            raise kind(reason) from error
        finally:
            listener.reset(here)
            if record.summary(run) is not None:
                # A job may outlive its sweep's process, and others then take its trial over.
                ours = os.getpid() == self.sweeper
                with nullcontext() if ours else study.lock(run.parent):
                    study.tell(self.address, number, run, self.objectives)


def silence_console() -> None:
    """Leaves a job's log in its files: on the screen the sweep has a line for each trial."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(logging.CRITICAL)


class RunningTrial:
    """A trial while its task runs: it keeps what is reported and asks the pruner.

    Its run folder has a history of what an application reports. A task whose objectives are known
    beforehand writes its own.
    """

    def __init__(self, job: SweepJob, number: int, run: Path) -> None:
        self.job = job
        self.number = number
        self.run = run
        self.pruner = make_pruner(job.pruner)
        self.writes_itself = job.sweep_task.objectives is not None
        self.history: dict[int, dict[str, float]] = {}
        self.began = time.time()
        self.reported_at = time.monotonic()

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes a step's metrics: see `fmnist_sweep.sweep.report`."""
        if not 0 <= step < 2**31:
            raise ValueError(f"report({step}, ...): a step is a number from 0 to {2**31 - 1}")
        now = time.monotonic()
        seconds, self.reported_at = now - self.reported_at, now
        self.history[step] = {"step": step, **metrics, "seconds": seconds}
        rows = [self.history[number] for number in sorted(self.history)]
        record.write_history(self.run, rows)
        if not self.goes_on_after(step, metrics):
            raise optuna.TrialPruned(f"pruned after step {step}")

    def goes_on_after(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Tells the study of a step and asks the pruner whether the trial should go on.

        Raises:
            TakenOver: this attempt is no longer the trial's.
        """
        name = self.job.objectives[0]
        if len(self.job.objectives) > 1 or name not in metrics:
            return True

        def ask() -> bool:
            backend = database.storage(self.job.address.url)
            trial = database.read_trial(self.job.address, self.number)
            if trial.user_attrs.get("run") != self.run.name:
                raise TakenOver
            backend.set_trial_intermediate_value(trial._trial_id, step, metrics[name])
            trial = backend.get_trial(trial._trial_id)
            # An interrupted attempt may have come further and left its values behind.
            steps = {k: v for k, v in trial.intermediate_values.items() if k <= step}
            trial.intermediate_values = steps
            return not self.pruner.prune(database.load(self.job.address), trial)

        return database.persist(ask)

    def finish(self, returned: Any) -> None:
        """Completes the run folder of a task that came to its end.

        Raises:
            TrialFailed: it has neither returned nor reported a number for each objective.
        """
        if (record.summary(self.run) or {}).get("state") == "PRUNED":
            return
        values = self._by_name(returned)
        for name in self.job.objectives:
            if not math.isfinite(values[name]):
                raise TrialFailed(f"{name} became {values[name]}")
        self.end("COMPLETE", None, values)

    def _by_name(self, returned: Any) -> dict[str, float]:
        """What a task has returned, or else reported last, by name."""
        names, expected = self.job.objectives, " and ".join(self.job.objectives)
        reported = self._last_reported()
        if returned is None and all(name in reported for name in names):
            return {name: reported[name] for name in names}
        if isinstance(returned, Mapping):
            found = {**reported, **returned}
            if missing := [name for name in names if name not in found]:
                known = ", ".join(map(str, returned)) or "nothing"
                raise TrialFailed(f"returned {known} instead of {', '.join(missing)}")
            kept = {str(name): found[name] for name in dict.fromkeys((*names, *returned))}
        else:
            values = returned if isinstance(returned, Sequence) else [returned]
            if isinstance(returned, str) or len(values) != len(names):
                what = repr(returned) if isinstance(returned, str) else f"{len(values)} values"
                raise TrialFailed(f"returned {what} instead of {expected}")
            kept = dict(zip(names, values))
        try:
            return {name: float(value) for name, value in kept.items()}
        except (TypeError, ValueError):
            raise TrialFailed(f"returned {returned!r} instead of {expected}") from None

    def _last_reported(self) -> dict[str, float]:
        """The last value of each metric reported."""
        last: dict[str, float] = {}
        for step in sorted(self.history):
            last |= self.history[step]
        return {name: v for name, v in last.items() if name not in ("step", "seconds")}

    def end(
        self, state: str, reason: str | None, values: Mapping[str, float] | None = None
    ) -> None:
        """Writes the trial's final row: state, reason and figures."""
        values = dict(values or {})
        if self.writes_itself:
            record.finish(self.run, state, reason, **values)
            return
        record.finish(
            self.run,
            state,
            reason,
            metrics={**self._last_reported(), **values},
            epochs=len(self.history),
            seconds=time.time() - self.began,
            started=self.began,
            ended=time.time(),
        )


def on_epoch() -> Callable[[Epoch], bool] | None:
    """Whether a trial should go on after an epoch, for training that writes its own history.

    None outside of a sweep.
    """
    trial = listener.get()
    if not isinstance(trial, RunningTrial):
        return None
    return lambda row: trial.goes_on_after(row.epoch, asdict(row))
