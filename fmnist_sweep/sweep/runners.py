"""Runners: one adapter per launcher, so that the sweep itself depends on no launcher.

| hydra/launcher | runner | a trial whose process dies |
|---|---|---|
| stacked | the launcher's own `runner` | is run again alone, then fails |
| basic | `BasicRunner` | fails |
| any other (joblib, submitit, ray, ...) | `BatchRunner` | is run again alone, then fails |
| any other, with `hydra.sweeper.shares` | `WorkerJobRunner` | is run again by another worker job |
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

from fmnist_sweep.base.background import Background
from fmnist_sweep.base.errors import (
    Error,
    ImpossibleTrial,
    MachineFault,
    ProcessDied,
    StopSweep,
    TooManyFailures,
    describe,
    is_machine_fault,
)
from fmnist_sweep.base.processes import call_in_process, libraries_of_main
from fmnist_sweep.sweep.hydra_job import Job, RemoteJob, compose
from fmnist_sweep.sweep.task import task_of

REFRESH_SECONDS = 0.5


class JobSource(Protocol):
    """The source of a runner's jobs, and the receiver of their results.

    background: a process for work that no trial waits for.
    """

    background: Background

    def take(self, count: int) -> list[Job]:
        """Return up to `count` jobs; fewer if there are no more now, though later calls may."""

    def ended(self, number: int, error: Exception | None) -> None:
        """Record that a job has ended.

        Args:
            number: the trial's number.
            error: the error that ended the job, if it reported one.

        Raises:
            TooManyFailures: the sweep must end.
        """

    def has_result(self, number: int) -> bool:
        """Return whether the trial's run folder holds its final row."""

    def has_started(self, number: int) -> bool:
        """Return whether the trial's job has written anything to its run folder."""

    def requeue(self, numbers: Sequence[int]) -> None:
        """Return trials to the queue; any process may run them again."""

    def refresh(self) -> None:
        """Display newly finished trials."""


class Runner(Protocol):
    """A strategy to run a sweep's jobs until none is left.

    A runner of many trials at once may have an attribute `ahead`: how many trials of a search it
    wants to begin before the first has ended.
    """

    def run(self, jobs: JobSource) -> None:
        """Run all jobs of a source and report how each ended.

        Raises:
            TooManyFailures: the launcher starts nothing, or the source ends the sweep.
            StopSweep, OSError: the machine is at fault; trials without a result will run again.
        """


@runtime_checkable
class ProvidesRunner(Protocol):
    """A launcher with its own runner, which asks for a job whenever another has ended."""

    def runner(self, cores: int) -> Runner:
        """Return a runner that uses the given number of CPU cores."""


def error_of(returned: JobReturn) -> Exception | None:
    """Return the error that ended a job, or None.

    Raises:
        StopSweep: the machine is at fault.
    """
    try:
        with redirect_stderr(io.StringIO()):  # Hydra prints a notice of the error
            _ = returned.return_value
    except Exception as error:
        if is_machine_fault(error):
            raise StopSweep(describe(error)) from None
        return error
    return None


class BasicRunner:
    """Runner of one job after the other, each in its own process."""

    def __init__(self, config: DictConfig, context: HydraContext, task: TaskFunction) -> None:
        self.hydra_setup = config, context, task
        self.preload = [*task_of(task).preload, *libraries_of_main()]

    def run(self, jobs: JobSource) -> None:
        while taken := jobs.take(1):
            (job,) = taken
            error: Exception | None
            try:
                error = error_of(call_in_process(RemoteJob(job, *self.hydra_setup), *self.preload))
            except MachineFault as fault:
                raise StopSweep(str(fault)) from None
            except Exception as raised:  # Hydra itself failed, or the process died
                if is_machine_fault(raised):
                    raise
                error = raised
            jobs.ended(job[0], error)


class BatchRunner:
    """Runner of batches with a Hydra launcher, which returns when the whole batch has ended.

    A process that dies may end other trials of its batch. If several trials have no result, they
    are run again one by one.
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
        self.compose_arguments = config, context, task_of(task).known_keys

    def run(self, jobs: JobSource) -> None:
        n_alone = 0  # trials still to be run alone
        while batch := self._next_batch(jobs, 1 if n_alone else self.at_once):
            n_alone = max(0, n_alone - 1)
            errors, reason = self._launch(batch, jobs)
            numbers = [number for number, _ in batch]
            lost = [n for n in numbers if n not in errors and not jobs.has_result(n)]
            if len(lost) > 1:
                plan = f"{len(lost)} trials continue, each by itself"
                print(f"{describe(reason)}; {plan}", file=sys.stderr)
                jobs.requeue(lost)
                n_alone += len(lost)
            for number in numbers:
                if len(lost) < 2 or number not in lost:
                    jobs.ended(number, errors.get(number, reason))

    def _next_batch(self, jobs: JobSource, size: int) -> list[Job]:
        batch: list[Job] = []
        while taken := jobs.take(size - len(batch)):
            for job in taken:
                try:  # an error in the job's process would end the whole batch
                    compose(job, *self.compose_arguments)
                except ImpossibleTrial as error:
                    jobs.ended(job[0], error)
                else:
                    batch.append(job)
        return batch

    def _launch(
        self, batch: Sequence[Job], jobs: JobSource
    ) -> tuple[dict[int, Exception], Exception]:
        """Run a batch to its end.

        Returns:
            The errors by trial number, and the reason why other trials may have no result.
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
            if not any(jobs.has_started(number) for number, _ in batch):
                jobs.requeue([number for number, _ in batch])
                raise TooManyFailures(
                    f"Stopped: the launcher starts no job ({describe(error)})"
                ) from None
        errors = {number: error_of(returned) for (number, _), returned in zip(batch, returns)}
        return {number: error for number, error in errors.items() if error}, reason


class WorkerJobSource(Protocol):
    """A sweep whose trials are taken by worker jobs, as `WorkerJobRunner` needs it."""

    def n_ended(self) -> int:
        """Return the number of trials that have ended."""

    def is_complete(self) -> bool:
        """Return whether all trials of the sweep have ended."""

    def worker_overrides(self, number: int) -> Sequence[str]:
        """Return the overrides of a worker job: a new folder for its log."""

    def reclaim_abandoned(self) -> None:
        """Release the trials of dead processes and display newly finished trials."""

    def refresh(self) -> None:
        """Display newly finished trials."""


class WorkerJobRunner:
    """Runner of worker jobs, which are started again until the sweep is complete."""

    def __init__(self, launcher: Launcher, count: int) -> None:
        self.launcher = launcher
        self.count = count

    def run(self, source: WorkerJobSource) -> None:
        while not source.is_complete():
            n_ended = source.n_ended()
            jobs = [source.worker_overrides(number) for number in range(self.count)]
            reason = "they ended without it"
            try:
                with _refreshing(source.refresh):
                    returns = self.launcher.launch(jobs, initial_job_idx=0)
                for error in map(error_of, returns):
                    if isinstance(error, TooManyFailures):
                        raise error
                    reason = describe(error) if error else reason
            except TooManyFailures:
                raise
            except Exception as error:  # for example, a worker job's process died
                if is_machine_fault(error):
                    raise
                reason = describe(error)
            source.reclaim_abandoned()
            if source.n_ended() == n_ended:
                raise TooManyFailures(f"Stopped: {self.count} shares finished no trial ({reason})")


@contextmanager
def _refreshing(refresh: Callable[[], None] | None) -> Iterator[None]:
    """Call `refresh` twice a second while a launcher runs a batch."""
    if refresh is None:
        yield
        return
    done = threading.Event()

    def watch() -> None:
        while not done.wait(REFRESH_SECONDS):
            with suppress(OSError, Error):  # the main thread meets these errors too
                refresh()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
