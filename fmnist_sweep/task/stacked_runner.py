"""Run a sweep's jobs with many trials in training at once, so that they share stacks.

A job has three parts. Hydra runs the first (folder, configuration, log, callbacks), within which
the task prepares its training. The scheduler then trains the jobs of all trials together. When a
trial's training has ended, the task finishes its run folder, and Hydra's `on_job_end` is called.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from pydantic import Field

from fmnist_sweep.base.background import Background
from fmnist_sweep.base.errors import ConfigError, MachineFault, ProcessDied, StopSweep
from fmnist_sweep.base.schema import Section, checked
from fmnist_sweep.engine.stack import Progress
from fmnist_sweep.engine.training_jobs import JobScheduler
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.sweep.hydra_job import Job, JobStarter
from fmnist_sweep.sweep.job import RunningTrial, SweepJob
from fmnist_sweep.sweep.task import never_stop, task_of
from fmnist_sweep.task import picture, scheduling
from fmnist_sweep.task.cli import parsed
from fmnist_sweep.task.config import Config
from fmnist_sweep.task.fashion import FashionTraining, objective_values
from fmnist_sweep.task.population import PopulationTraining
from fmnist_sweep.task.trial import Training


class Settings(Section):
    """The keys of `hydra.launcher`, documented in conf/hydra/launcher/stacked.yaml."""

    max_stack: Annotated[int, Field(ge=1)] | None
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
    take: Callable[[int], list[Job]],
    on_end: Callable[[int, JobReturn], None],
    background: Background,
) -> None:
    """Run jobs until there are no more and all that were begun have ended.

    Args:
        take: returns up to a number of jobs.
        cores: CPU cores for this process and its workers.
        background: draws the pictures of the runs.
        on_end: called with each job's number and return.
    """
    starter = JobStarter(config, context, task_of(task).known_keys)
    running: list[_StackedJob] = []
    more_may_come = True
    configs = _parsed(config)
    plan = task.population if isinstance(task, SweepJob) and configs else None
    population = PopulationTraining(plan, configs[0]) if plan else None
    at_once = plan.n_trials if plan else None
    with scheduling.scheduler(
        configs, cores, settings.max_stack, settings.workers, at_once
    ) as scheduler:
        try:
            while True:
                room = scheduler.count * scheduler.max_stack - len(running)
                if more_may_come and room:
                    # A task that cannot be split runs at once, and the next learns from it.
                    count = room if isinstance(task_of(task), FashionTraining) else 1
                    jobs = take(count)
                    more_may_come = len(jobs) == count
                    for job in jobs:
                        running.append(_StackedJob(job, task, background, len(jobs), population))
                        running[-1].start(starter, scheduler)
                elif not running:
                    break
                else:
                    scheduler.step()
                    if population:
                        population.exchange_when_due(scheduler)
                # The end of a trial makes room for others.
                more_may_come |= _collect(running, on_end)
        except (MachineFault, ProcessDied) as fault:  # no worker can be started
            raise StopSweep(str(fault)) from None
        finally:
            for one in running:
                one.abandon()
    if population:
        population.close()


def _parsed(config: DictConfig) -> list[Config]:
    try:
        return [parsed(config)]
    except ConfigError:  # a value is missing; the trials report it
        return []


def ahead(config: DictConfig, cores: int) -> int:
    """Return how many trials of a search to begin before the first has ended."""
    has_scheduler = bool(config.hydra.sweeper.get("scheduler"))
    return scheduling.ahead(_parsed(config), cores, has_scheduler)


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
        self,
        job: Job,
        task: TaskFunction,
        background: Background,
        together: int,
        population: PopulationTraining | None = None,
    ) -> None:
        self.number = job[0]
        self.together = together  # trials that begin now
        self.population = population
        self.background = background
        self.job = job
        self.task = task
        self.log = _JobLog()
        self.trial: RunningTrial | None = None
        self.training: Training | None = None
        self.error: Exception | None = None

    def start(self, starter: JobStarter, scheduler: JobScheduler) -> None:
        """Have Hydra set up the job and the task prepare its training, and schedule that."""
        with self.log:
            self.begun = starter.begin(self.job, self._prepare)
        if self.training:
            if self.population:
                self.population.add(self.number, self.training)
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
            on_epoch = self.trial.take_epoch if self.trial else never_stop
            self.training = task.prepare(
                config, run, on_epoch, self.together, **self._in_population()
            )
            self.training.draw = self._draw_later
        return None

    def _in_population(self) -> dict[str, Any]:
        if self.population is None:
            return {}
        return {"in_population": True, "state": self.population.states.get(self.number)}

    def _draw_later(self, folder: Path, title: str) -> None:
        self.background.submit(partial(picture.draw, folder, title))

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
            if self.population:
                self.population.epoch_ended(self.number, row)
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
        returned = self.begun.returned
        with self.log, self.begun.active():
            if self.training and not self.error:
                try:
                    with self._trial():
                        returned.return_value = objective_values(self.training.finish())
                        if self.trial:
                            self.trial.finish(returned.return_value)
                except Exception as error:
                    self.error = error
            if self.error:
                returned.return_value = self.error
                returned.status = JobStatus.FAILED
            self.begun.end()
        self.log.close()
        return returned

    def abandon(self) -> None:
        """Keep what an interrupted job has recorded."""
        if self.training:
            with suppress(OSError):
                self.training.history_file.flush()
        self.log.close()


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
