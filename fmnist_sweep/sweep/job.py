"""One trial of a sweep, in whichever process the launcher runs it.

The job stands around the task that Hydra launches: when the task ends, however it ends, the run
folder is completed and only then is the study told.
"""

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fmnist_sweep import record
from fmnist_sweep.processes import end_with_launcher
from fmnist_sweep.record import Epoch
from fmnist_sweep.sweep import database, study
from fmnist_sweep.sweep.settings import make_pruner

log = logging.getLogger(__name__)


class JobFailed(Exception):
    """A trial that ended without a usable result; the message says why."""


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

    def __call__(self, config: DictConfig) -> None:
        if os.getpid() == self.sweeper:
            self._run(config)
            return
        end_with_launcher()
        try:
            self._run(config)
        except database.Lost as lost:
            raise database.LostElsewhere(str(lost)) from None

    def _run(self, config: DictConfig) -> None:
        run = Path(HydraConfig.get().runtime.output_dir)
        number = record.read_json(run, "trial.json")["trial"]
        here = _current.set(Reporter(self, number, run))
        try:
            self._finish(run, self.task(config))
        except optuna.TrialPruned as pruned:
            record.finish(run, "PRUNED", str(pruned) or "pruned")
        except (Exception, SystemExit) as error:
            if record.is_disk_fault(error):  # no fault of the trial's
                raise database.Lost(str(error)) from None
            reason = _reason(error)
            log.error("Trial %d failed: %s", number, reason)
            record.finish(run, "FAILED", reason)
            raise JobFailed(reason) from error
        finally:
            _current.reset(here)
            if record.summary(run) is not None:
                # A job may outlive its sweep's process, and others then take its trial over.
                ours = os.getpid() == self.sweeper
                with nullcontext() if ours else study.lock(run.parent):
                    study.tell(self.address, number, run, self.objectives)

    def _finish(self, run: Path, returned: Any) -> None:
        """Completes the run folder of a task that came to its end.

        Raises:
            JobFailed: it returned no number for each objective.
        """
        known = record.summary(run) or {}
        if known.get("state") == "PRUNED":
            return
        values = returned if isinstance(returned, Sequence) else [returned]
        expected = " and ".join(self.objectives)
        try:
            numbers = [float(value) for value in values]
        except (TypeError, ValueError):
            raise JobFailed(f"returned {returned!r} instead of {expected}") from None
        if len(numbers) != len(self.objectives):
            raise JobFailed(f"returned {len(numbers)} values instead of {expected}")
        for name, number in zip(self.objectives, numbers):
            if not math.isfinite(number):
                raise JobFailed(f"{name} became {number}")
        named: dict[str, Any] = dict(zip(self.objectives, numbers))
        record.finish(run, "COMPLETE", **named)


class Reporter:
    """Tells the study of a trial's epochs and asks the pruner whether it should go on."""

    def __init__(self, job: SweepJob, number: int, run: Path) -> None:
        self.job = job
        self.number = number
        self.run = run
        self.pruner = make_pruner(job.pruner)

    def __call__(self, row: Epoch) -> bool:
        """Whether the trial should go on after this epoch.

        Raises:
            TakenOver: this attempt is no longer the trial's.
        """
        if len(self.job.objectives) > 1 or self.job.objectives[0] not in record.EPOCH_METRICS:
            return True
        value = getattr(row, self.job.objectives[0])

        def report() -> bool:
            backend = database.storage(self.job.address.url)
            trial = database.read_trial(self.job.address, self.number)
            if trial.user_attrs.get("run") != self.run.name:
                raise TakenOver
            backend.set_trial_intermediate_value(trial._trial_id, row.epoch, value)
            trial = backend.get_trial(trial._trial_id)
            # An interrupted attempt may have come further and left its values behind.
            steps = {k: v for k, v in trial.intermediate_values.items() if k <= row.epoch}
            trial.intermediate_values = steps
            return not self.pruner.prune(database.load(self.job.address), trial)

        return database.persist(report)


_current: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def reporter() -> Reporter | None:
    """The sweep's ear for the trial that this process runs; None outside of a sweep."""
    return _current.get()


def _reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, SystemExit):
        return f"sys.exit({error.code!r})" if error.code else "sys.exit"
    text = " ".join(str(error).split())
    known = {"ConfigError", "DataError", "TrialFailed", "JobFailed"}
    if type(error).__name__ in known and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
