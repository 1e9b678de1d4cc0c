"""One trial of a sweep, in whichever process the launcher runs it.

`SweepJob` wraps the task function that Hydra runs. When the task ends, in whatever way, the job
first completes the run folder and then tells the study.
"""

import copy
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fmnist_sweep.base import command
from fmnist_sweep.base.errors import (
    ConfigError,
    ImpossibleTrial,
    MachineFault,
    StopSweep,
    TrialFailed,
    describe,
    is_machine_fault,
)
from fmnist_sweep.base.processes import exit_with_launcher
from fmnist_sweep.results import record
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.sweep import database, study, trial_rows
from fmnist_sweep.sweep.pbt import Population
from fmnist_sweep.sweep.ranks import one_objective_study, with_ranks
from fmnist_sweep.sweep.scheduler import EPOCH_SECONDS, EpochLimit, Scheduler, StudyState
from fmnist_sweep.sweep.settings import make_pruner
from fmnist_sweep.sweep.task import Decision, Task, listener, seed_of, task_of

log = logging.getLogger(__name__)


class TakenOver(KeyboardInterrupt):
    """Another process considers this trial abandoned and runs it again."""


@dataclass
class SweepJob:
    """A sweep's task function.

    It is pickled into other processes, which exit with the sweep's process.

    seed_key: the key of the seed, in which the repeats of a trial differ.
    repeats: the number of seeds that each trial is run on.
    sweeper: the id of the process that launches the trials.
    deadline: when running trials end with their next step, as `time.time()` returns it.
    scheduler: decides which trials continue, in the place of the pruner.
    limit: returns a trial's number of epochs.
    n_trials: the number of trials of the sweep.
    population: the population that the trials form, if they do.
    """

    task: Callable[[DictConfig], Any]
    address: database.Address
    objectives: list[str]
    pruner: Mapping[str, Any]
    seed_key: str | None = None
    repeats: int = 1
    sweeper: int = field(default_factory=os.getpid)
    deadline: float | None = None
    scheduler: Scheduler | None = None
    limit: EpochLimit = field(default_factory=EpochLimit)
    n_trials: int = 0
    population: Population | None = None

    @property
    def sweep_task(self) -> Task:
        """The `Task` of the application."""
        return task_of(self.task)

    @property
    def can_pause(self) -> bool:
        """True if a trial that stops before its end can continue later."""
        return self.scheduler is not None and self.sweep_task.can_pause

    def __call__(self, config: DictConfig) -> None:
        if os.getpid() == self.sweeper:
            self._run(config)
            return
        exit_with_launcher()
        command.make_streams_robust()
        try:
            self._run(config)
        except StopSweep as stop:  # launchers carry no interruptions
            raise MachineFault(str(stop)) from None

    def _run(self, config: DictConfig) -> None:
        trial = self.begin()
        with trial.running():
            seed = trial.seed = seed_of(config, self.seed_key)
            if self.repeats == 1:
                trial.finish(self.task(config))
                return
            if seed is None:
                raise ConfigError(f"hydra.sweeper.seed_key={self.seed_key}: holds no seed")
            config = copy.deepcopy(config)
            OmegaConf.set_readonly(config, False)
            for repeat in range(self.repeats):
                OmegaConf.update(config, str(self.seed_key), seed + repeat)
                trial.finish_repeat(self.task(config))
            trial.finish_repeats()

    def begin(self) -> "RunningTrial":
        """Begin the trial of the current Hydra job."""
        silence_console()
        run = Path(HydraConfig.get().runtime.output_dir)
        return RunningTrial(self, record.read_json(run, "trial.json")["trial"], run)


def silence_console() -> None:
    """Keep a job's log off the screen, where the sweep has a line for each trial."""
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setLevel(logging.CRITICAL)


class RunningTrial:
    """A trial while its task runs: records reports and asks the pruner.

    The run folder's history holds what an application reports. A task that declares its objectives
    writes a history itself.
    """

    def __init__(self, job: SweepJob, number: int, run: Path) -> None:
        self.job = job
        self.number = number
        self.run = run
        self.pruner = make_pruner(job.pruner)
        self.prunes = not isinstance(self.pruner, optuna.pruners.NopPruner)
        self.values: dict[int, list[float]] = {}  # of the objectives by step, not in the study yet
        self.writes_itself = job.sweep_task.objectives is not None
        self.history_file = record.HistoryFile(run)
        self.epoch_seconds: float | None = None
        self.seed: int | None = None
        self.history: dict[int, dict[str, float]] = {}  # by step, of the repeat that is running
        self.repeats: list[dict[int, dict[str, float]]] = []  # histories of those that have ended
        self.figures: list[dict[str, float]] = []  # their last and returned metrics
        self.began = time.time()
        self.reported_at = time.monotonic()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run a part of the trial: send reports here, and end the trial where the part fails.

        Once the run folder has its final row, tell the study.

        Raises:
            StopSweep: the machine is at fault; the trial can run again.
            ImpossibleTrial, TrialFailed: the trial has failed; the message says why.
        """
        before = listener.set(self)
        try:
            yield
        except optuna.TrialPruned as pruned:
            self.end("PRUNED", str(pruned) or "pruned")
        except (Exception, SystemExit) as error:
            if is_machine_fault(error):
                raise StopSweep(describe(error)) from None
            reason = describe(error)
            log.error("Trial %d failed: %s", self.number, reason)
            self.end("FAILED", reason)
            kind = ImpossibleTrial if isinstance(error, ConfigError) else TrialFailed
            raise kind(reason) from error
        finally:
            listener.reset(before)
            if record.summary(self.run) is not None:
                # A job may outlive its sweep's process; another sweeper then reruns its trial.
                ours = os.getpid() == self.job.sweeper
                with nullcontext() if ours else study.lock(self.run.parent):
                    study.tell(
                        self.job.address, self.number, self.run, self.job.objectives, self.values
                    )

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a step's metrics: see `fmnist_sweep.sweep.report`."""
        if not 0 <= step < 2**31:
            raise ValueError(f"report({step}, ...): a step is a number from 0 to {2**31 - 1}")
        now = time.monotonic()
        seconds, self.reported_at = now - self.reported_at, now
        self.history[step] = {"step": step, **metrics, "seconds": seconds}
        self.history_file.update(_means([*self.repeats, self.history]))
        # Of several repeats the pruner decides on the first, which every trial has.
        if not self.repeats and not self._may_continue(step, len(self.history), metrics):
            raise optuna.TrialPruned(f"pruned after step {step}")

    def take_epoch(self, row: Epoch) -> Decision:
        """Take an epoch: tell the study of it, and decide whether the trial continues."""
        # The shortest: the first epoch may wait for a compilation, and others for another process.
        self.epoch_seconds = min(self.epoch_seconds or row.seconds, row.seconds)
        if self._may_continue(row.epoch, row.epoch, asdict(row)):
            return Decision.CONTINUE
        return Decision.PAUSE if self.job.can_pause else Decision.PRUNE

    def _may_continue(self, step: int, count: int, metrics: Mapping[str, float]) -> bool:
        """Return whether the trial continues after a step.

        Args:
            step: the step.
            count: the number of steps so far.
            metrics: those of the step, by name.

        Raises:
            TakenOver: another attempt has replaced this one.
        """
        is_over = self.job.deadline is not None and time.time() > self.job.deadline
        scheduler, names = self.job.scheduler, self.job.objectives
        is_used = len(names) == 1 or self.prunes or scheduler
        if not is_used or any(name not in metrics for name in names):
            return not is_over
        self.values[step] = [metrics[name] for name in names]
        if self.prunes and not is_over:
            return database.retry(partial(self._survives, step))
        # The study hears of all other steps at the end, or when the scheduler decides.
        if scheduler and not is_over and scheduler.decides_after(self.number, count):
            return database.retry(partial(self._is_scheduled, scheduler, count))
        return not is_over

    def _is_scheduled(self, scheduler: Scheduler, count: int) -> bool:
        """Return whether the scheduler gives the trial more epochs after this number of them."""
        url, status = self.job.address.url, self._status()
        trial_rows.set_steps(url, status, self.values)
        self.values.clear()
        trial_rows.set_attributes(url, {status.id: {EPOCH_SECONDS: self.epoch_seconds}})
        known = database.load(self.job.address)
        trials, direction = with_ranks(known.get_trials(deepcopy=False), known.directions)
        can_begin = len(trials) < self.job.n_trials
        state = StudyState(trials, direction, self.job.limit, can_begin)
        return state.has_passed(self.number, count) or scheduler.lets_continue(
            state, self.number, count, self.job.can_pause
        )

    def _survives(self, step: int) -> bool:
        """Return whether the pruner lets the trial continue after a step."""
        url, status = self.job.address.url, self._status()
        trial_rows.replace_steps(url, status, self.values)
        self.values.clear()
        study = database.load(self.job.address)
        if len(study.directions) > 1:
            trials, direction = with_ranks(study.get_trials(deepcopy=False), study.directions)
            study, trial = one_objective_study(trials, direction), trials[self.number]
        else:
            trial = database.read_trial(self.job.address, self.number)
        # An interrupted attempt may have come further and have left values of later steps.
        steps = {k: v for k, v in trial.intermediate_values.items() if k <= step}
        trial.intermediate_values = steps
        return not self.pruner.prune(study, trial)

    def _status(self) -> trial_rows.TrialStatus:
        """Return the trial's status in the study.

        Raises:
            TakenOver: another attempt has replaced this one.
        """
        status = trial_rows.read_status(self.job.address, self.number)
        if status.run != self.run.name:
            raise TakenOver
        return status

    def finish(self, returned: Any) -> None:
        """Complete the run folder of a task that came to its end.

        Raises:
            TrialFailed: it has neither returned nor reported a finite number for each objective.
        """
        if (record.summary(self.run) or {}).get("state") in ("PAUSED", "PRUNED"):
            return
        values = self._by_name(returned)
        self._check_finite(values)
        self.end("COMPLETE", None, values)

    def finish_repeat(self, returned: Any) -> None:
        """Take the result of one of several repeats.

        Raises:
            TrialFailed: as `finish`.
        """
        values = self._by_name(returned)
        self._check_finite(values)
        self.figures.append({**self._last_reported(), **values})
        self.repeats.append(self.history)
        self.history = {}

    def finish_repeats(self) -> None:
        """Complete the run folder with the means over the repeats and their standard deviations."""
        names = [name for name in self.figures[0] if all(name in one for one in self.figures)]
        values = {name: [one[name] for one in self.figures] for name in names}
        means = {name: statistics.fmean(each) for name, each in values.items()}
        spread = {f"{name}_std": statistics.stdev(each) for name, each in values.items()}
        self.history = max(self.repeats, key=len)
        self.end("COMPLETE", None, means, repeats=len(self.figures), **spread)

    def _check_finite(self, values: Mapping[str, float]) -> None:
        for name in self.job.objectives:
            if not math.isfinite(values[name]):
                raise TrialFailed(f"{name} became {values[name]}")

    def _by_name(self, returned: Any) -> dict[str, float]:
        """Return the objectives and other returned metrics by name, else the last reported ones."""
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
        """Return the last reported value of each metric."""
        last: dict[str, float] = {}
        for step in sorted(self.history):
            last |= self.history[step]
        return {name: v for name, v in last.items() if name not in ("step", "seconds")}

    def end(
        self,
        state: str,
        reason: str | None,
        values: Mapping[str, float] | None = None,
        **more: float,
    ) -> None:
        """Write the trial's final row: state, reason and figures."""
        values = dict(values or {})
        self.history_file.flush()
        if self.writes_itself:
            record.finish(self.run, state, reason, **values)
            return
        record.finish(
            self.run,
            state,
            reason,
            metrics={**self._last_reported(), **values},
            epochs=len(self.history),
            seed=self.seed,
            seconds=time.time() - self.began,
            started=self.began,
            ended=time.time(),
            **more,
        )


def _means(histories: Sequence[Mapping[int, Mapping[str, float]]]) -> list[dict[str, float]]:
    """Average the repeats' rows of each step, by step; their seconds add up."""
    if len(histories) == 1:
        return [dict(histories[0][step]) for step in sorted(histories[0])]
    rows = []
    for step in sorted({step for history in histories for step in history}):
        there = [history[step] for history in histories if step in history]
        names = dict.fromkeys(name for row in there for name in row)
        row = {name: statistics.fmean(one[name] for one in there if name in one) for name in names}
        rows.append({**row, "step": step, "seconds": sum(one["seconds"] for one in there)})
    return rows
