"""Run a sweep's jobs with many trials in training at once, so that they share stacks.

A job has three parts. Hydra runs the first (folder, configuration, log, callbacks), within which
the task prepares its training. The scheduler then trains the jobs of all trials together. When a
trial's training has ended, the task finishes its run folder, and Hydra's `on_job_end` is called.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from fmnist_sweep.base.errors import ConfigError, ImpossibleTrial, MachineFault, StopSweep
from fmnist_sweep.base.schema import Section, checked
from fmnist_sweep.engine.stack import Progress
from fmnist_sweep.engine.training_jobs import JobScheduler
from fmnist_sweep.engine.workers import ProcessWorker, Worker
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.sweep.hydra_job import Job, compose, execute, failed
from fmnist_sweep.sweep.job import RunningTrial, SweepJob
from fmnist_sweep.sweep.task import task_of
from fmnist_sweep.task import build
from fmnist_sweep.task.cli import parsed
from fmnist_sweep.task.fashion import FashionTraining, objective_values
from fmnist_sweep.task.trial import Training


class Settings(Section):
    """The keys of `hydra.launcher`, documented in conf/hydra/launcher/stacked.yaml."""

    max_stack: int = Field(ge=1)
    workers: Annotated[int, Field(ge=1)] | None


def read(values: Mapping[Any, Any]) -> Settings:
    """Check `hydra.launcher`.

    Raises:
        ConfigError: one line with the key, its value and the allowed range.
    """
    given = {str(key): value for key, value in values.items() if key != "_target_"}
    return checked(Settings, given, "hydra.launcher.")


def run(
    settings: Settings,
    cores: int,
    config: DictConfig,
    context: HydraContext,
    task: TaskFunction,
    next_job: Callable[[], Job | None],
    on_end: Callable[[int, JobReturn], None],
) -> None:
    """Run jobs until `next_job` returns None and all that were begun have ended.

    Args:
        cores: CPU cores for this process and its workers.
        on_end: called with each job's number and return.
    """
    on_cpu = _on_cpu(config)
    # As many stacks side by side as cores allow; a GPU takes one, in this process.
    threads_each = OmegaConf.select(config, "trainer.threads") or 1
    workers = settings.workers or max(1, cores // threads_each if on_cpu else 1)
    worker: type[Worker] = ProcessWorker if on_cpu or workers > 1 else Worker
    running: list[_StackedJob] = []
    more_may_come = True
    with JobScheduler(worker, workers, settings.max_stack, workers * threads_each) as scheduler:
        try:
            while True:
                while more_may_come and len(running) < workers * settings.max_stack:
                    job = next_job()
                    if job is None:
                        more_may_come = False
                        break
                    running.append(_StackedJob(job, config, context, task))
                    running[-1].start(scheduler)
                    _collect(running, on_end)
                if not running:
                    return
                scheduler.step()
                more_may_come |= _collect(running, on_end)
        except MachineFault as fault:  # no worker can be started
            raise StopSweep(str(fault)) from None
        finally:
            for one in running:
                one.log.close()


def _on_cpu(config: DictConfig) -> bool:
    try:
        return build.device(parsed(config)).type == "cpu"
    except ConfigError:  # the trials report it
        return True


def _collect(running: list["_StackedJob"], on_end: Callable[[int, JobReturn], None]) -> bool:
    """Finish the jobs whose training has ended and report them; return whether there were any."""
    ended = [job for job in running if job.is_trained]
    for job in ended:
        running.remove(job)
        on_end(job.number, job.finish())
    return bool(ended)


class _StackedJob:
    """One of Hydra's jobs and its trial, from preparation to its end."""

    def __init__(
        self, job: Job, config: DictConfig, context: HydraContext, task: TaskFunction
    ) -> None:
        self.number = job[0]
        self.job = job
        self.config = config
        self.context = context
        self.task = task
        self.log = _JobLog()
        self.trial: RunningTrial | None = None
        self.training: Training | None = None
        self.error: Exception | None = None
        self.returned = JobReturn()

    def start(self, scheduler: JobScheduler) -> None:
        """Have Hydra set up the job and the task prepare its training, and schedule that."""
        known_keys = task_of(self.task).known_keys
        try:
            self.config = compose(self.job, self.config, self.context, known_keys)
        except ImpossibleTrial as error:
            self.returned = failed(error)
            return
        # The job ends for Hydra's callbacks when its training has ended, not with the preparation.
        callbacks: Any = _WithoutJobEnd(self.context.callbacks)
        try:
            with self.log:
                context = replace(self.context, callbacks=callbacks)
                self.returned = execute(self.config, context, self._prepare)
        except Exception as error:  # not the task's, which Hydra catches, but Hydra's own
            self.returned = failed(error)
        if self.training:
            for job in self.training.jobs:
                job.on_epoch = partial(self._take_epoch, job.on_epoch)
                job.on_batches = partial(self._take_progress, job.on_batches)
                scheduler.add(job)

    def _prepare(self, config: DictConfig) -> Any:
        task = task_of(self.task)
        if not isinstance(task, FashionTraining):  # it cannot be split: Hydra runs it whole
            return self.task(config)
        if isinstance(self.task, SweepJob):
            self.trial = self.task.begin()
        with self._trial():
            run = Path(HydraConfig.get().runtime.output_dir)
            on_epoch = self.trial.take_epoch if self.trial else _go_on
            self.training = task.prepare(config, run, on_epoch)
        return None

    def _trial(self) -> AbstractContextManager[None]:
        """Enter the trial, so that an error ends it."""
        return self.trial.running() if self.trial else nullcontext()

    def _take_epoch(self, on_epoch: Callable[[Epoch], None], row: Epoch) -> None:
        """Pass an epoch on; an error there ends this trial and not its stack."""
        assert self.training is not None
        if self.error:
            return
        try:
            with self.log, self._trial():
                on_epoch(row)
        except Exception as error:
            self.error = error
            for job in self.training.jobs:
                job.stop = True

    def _take_progress(self, on_batches: Callable[[Progress], None], progress: Progress) -> None:
        with self.log:
            on_batches(progress)

    @property
    def is_trained(self) -> bool:
        """The trial has nothing left to train."""
        return self.training is None or all(job.ended for job in self.training.jobs)

    def finish(self) -> JobReturn:
        """Complete the run folder, and end the job for Hydra."""
        with self.log, _hydra_config(self.config):
            if self.training and not self.error:
                try:
                    with self._trial():
                        self.returned.return_value = objective_values(self.training.finish())
                        if self.trial:
                            self.trial.finish(self.returned.return_value)
                except Exception as error:
                    self.error = error
            if self.error:
                self.returned.return_value = self.error
                self.returned.status = JobStatus.FAILED
            if self.returned.overrides is not None:  # Hydra has called `on_job_start`
                self.context.callbacks.on_job_end(config=self.config, job_return=self.returned)
        self.log.close()
        return self.returned


def _go_on(_: Epoch) -> bool:
    """Prune nothing: under a sweeper other than `study` there is no pruner."""
    return True


class _WithoutJobEnd:
    """Hydra's callbacks, `on_job_end` left out."""

    def __init__(self, callbacks: Any) -> None:
        self.callbacks = callbacks

    def on_job_end(self, **_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.callbacks, name)


class _JobLog:
    """The log handlers that Hydra sets up for one job, active inside a `with` block."""

    def __init__(self) -> None:
        self.handlers = list(logging.getLogger().handlers)

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(self, *_: object) -> None:
        self._exchange()

    def _exchange(self) -> None:
        root = logging.getLogger()
        self.handlers, root.handlers[:] = list(root.handlers), self.handlers

    def close(self) -> None:
        """Close the job's log file."""
        for handler in self.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()


@contextmanager
def _hydra_config(config: DictConfig) -> Iterator[None]:
    """Let `HydraConfig` return a job's configuration."""
    here = HydraConfig.instance()
    before = here.cfg
    here.set_config(config)
    try:
        yield
    finally:
        here.cfg = before
