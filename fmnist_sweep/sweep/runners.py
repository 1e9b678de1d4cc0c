"""How each launcher runs a sweep's jobs: one adapter a launcher, the sweep itself knows none.

| hydra/launcher | adapter | a trial whose process dies |
|---|---|---|
| stacked | what its `runner` returns | goes on alone, then fails |
| basic | `BasicRunner` | has failed |
| any other of Hydra's (joblib, submitit, ray, ...) | `BatchRunner` | goes on alone, then fails |
| these, with `hydra.sweeper.shares` | `ShareRunner` | goes to another share |
"""

import io
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Protocol, runtime_checkable

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from fmnist_sweep.base.errors import (
    ImpossibleTrial,
    MachineFault,
    ProcessDied,
    ReportError,
    StopSweep,
    TooManyFailures,
    describe,
    is_machine_fault,
)
from fmnist_sweep.base.processes import call_in_process, libraries_of_main
from fmnist_sweep.sweep.hydra_job import Job, RemoteJob, compose
from fmnist_sweep.sweep.task import task_of

REFRESH_SECONDS = 0.5


class Jobs(Protocol):
    """Where a runner takes its jobs from, and what it tells of them."""

    def next(self) -> Job | None:
        """The next job; None while there is none, for now or at all."""

    def ended(self, number: int, error: Exception | None) -> None:
        """Takes in a job that has ended, with what kept it from its end if it says so itself.

        Raises:
            TooManyFailures: the sweep is to end.
        """

    def has_result(self, number: int) -> bool:
        """Whether the trial's run folder has its final row."""

    def was_begun(self, number: int) -> bool:
        """Whether a job has come so far as to leave anything."""

    def put_back(self, numbers: Sequence[int]) -> None:
        """Has trials run again, by whoever asks next."""

    def refresh(self) -> None:
        """Shows what has finished meanwhile."""


class Runner(Protocol):
    """Runs jobs until none is left."""

    def run(self, jobs: Jobs) -> None:
        """Takes jobs and tells how each ended.

        Raises:
            TooManyFailures: the launcher starts nothing, or `jobs` says so.
            StopSweep, OSError: the machine is at fault; trials without a result run again.
        """


@runtime_checkable
class RunsByItself(Protocol):
    """A launcher that asks for jobs as others end, instead of taking them in batches."""

    def runner(self, cores: int) -> Runner:
        """Runs a sweep's jobs on so many cores."""


def error_of(returned: JobReturn) -> Exception | None:
    """What kept a job from its end.

    Raises:
        StopSweep: the machine is at fault.
    """
    try:
        with redirect_stderr(io.StringIO()):  # where Hydra says that there was an error
            _ = returned.return_value
    except Exception as error:
        if is_machine_fault(error):
            raise StopSweep(describe(error)) from None
        return error
    return None


class BasicRunner:
    """One job after the other, each in a process of its own."""

    def __init__(self, config: DictConfig, context: HydraContext, task: TaskFunction) -> None:
        self.surroundings = config, context, task
        self.preload = [task_of(task).preload, *libraries_of_main()]

    def run(self, jobs: Jobs) -> None:
        while job := jobs.next():
            error: Exception | None
            try:
                error = error_of(call_in_process(RemoteJob(job, *self.surroundings), *self.preload))
            except MachineFault as fault:
                raise StopSweep(str(fault)) from None
            except Exception as raised:  # of Hydra's part, or its process has died
                if is_machine_fault(raised):
                    raise
                error = raised
            jobs.ended(job[0], error)


class BatchRunner:
    """Batches of a launcher of Hydra's, which returns when a whole batch has ended.

    A process that dies takes its batch's open trials along: they go on one by one.
    """

    def __init__(
        self,
        launcher: Launcher,
        at_once: int,
        config: DictConfig,
        context: HydraContext,
        task: TaskFunction,
    ) -> None:
        self.launcher = launcher
        self.at_once = at_once
        self.surroundings = config, context, task_of(task).known_keys

    def run(self, jobs: Jobs) -> None:
        alone = 0
        while batch := self._batch(jobs, 1 if alone else self.at_once):
            alone = max(0, alone - 1)
            errors, reason = self._launch(batch, jobs)
            numbers = [number for number, _ in batch]
            lost = [n for n in numbers if n not in errors and not jobs.has_result(n)]
            if len(lost) > 1:
                many = f"{len(lost)} trials go on, each by itself"
                print(f"{describe(reason)}; {many}", file=sys.stderr)
                jobs.put_back(lost)
                alone += len(lost)
            for number in numbers:
                if len(lost) < 2 or number not in lost:
                    jobs.ended(number, errors.get(number, reason))

    def _batch(self, jobs: Jobs, most: int) -> list[Job]:
        batch: list[Job] = []
        while len(batch) < most and (job := jobs.next()):
            try:  # in a job's process it would bring the whole batch down
                compose(job, *self.surroundings)
            except ImpossibleTrial as error:
                jobs.ended(job[0], error)
            else:
                batch.append(job)
        return batch

    def _launch(self, batch: Sequence[Job], jobs: Jobs) -> tuple[dict[int, Exception], Exception]:
        """Runs a batch to its end.

        Returns:
            What went wrong with single trials, and why others may be without a result.
        """
        reason: Exception = ProcessDied("the launcher returned without it")
        returns: Sequence[JobReturn] = []
        try:
            with _refreshing(jobs.refresh if len(batch) > 1 else None):
                overrides = [list(overrides) for _, overrides in batch]
                returns = self.launcher.launch(overrides, initial_job_idx=batch[0][0])
        except Exception as error:
            if is_machine_fault(error):
                raise
            reason = error
            if not any(jobs.was_begun(number) for number, _ in batch):
                jobs.put_back([number for number, _ in batch])
                raise TooManyFailures(
                    f"Stopped: the launcher starts no job ({describe(error)})"
                ) from None
        found = {number: error_of(returned) for (number, _), returned in zip(batch, returns)}
        return {number: error for number, error in found.items() if error}, reason


class Shares(Protocol):
    """What `ShareRunner` asks of a sweep whose trials other processes take for themselves."""

    def done(self) -> int:
        """Trials that have ended."""

    def is_complete(self) -> bool:
        """Whether the sweep has all its trials."""

    def share(self, number: int) -> Sequence[str]:
        """The overrides of a share's job: a folder for its log."""

    def take_in(self) -> None:
        """Settles the trials of processes that are gone, and shows what has finished."""

    def refresh(self) -> None:
        """Shows what has finished meanwhile."""


class ShareRunner:
    """Jobs that each take trials until none is left; started again if some have died."""

    def __init__(self, launcher: Launcher, count: int) -> None:
        self.launcher = launcher
        self.count = count

    def run(self, shares: Shares) -> None:
        while not shares.is_complete():
            done = shares.done()
            jobs = [shares.share(number) for number in range(self.count)]
            reason = "they ended without it"
            try:
                with _refreshing(shares.refresh):
                    returns = self.launcher.launch(jobs, initial_job_idx=0)
                for error in map(error_of, returns):
                    if isinstance(error, TooManyFailures):
                        raise error
                    reason = describe(error) if error else reason
            except TooManyFailures:
                raise
            except Exception as error:  # as when a share's process has died
                if is_machine_fault(error):
                    raise
                reason = describe(error)
            shares.take_in()
            if shares.done() == done:
                raise TooManyFailures(f"Stopped: {self.count} shares finished no trial ({reason})")


@contextmanager
def _refreshing(refresh: Callable[[], None] | None) -> Iterator[None]:
    """Refreshes twice a second while a launcher is at work on a batch."""
    if refresh is None:
        yield
        return
    done = threading.Event()

    def work() -> None:
        while not done.wait(REFRESH_SECONDS):
            with suppress(OSError, ReportError):  # which the sweep itself meets as well
                refresh()

    watcher = threading.Thread(target=work, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
