"""Many of a sweep's jobs at once in one process, so that their trials can be trained in stacks.

Each job is Hydra's own, from its log to its callbacks, around the user's task function. It runs
in a greenlet: when the task wants a trial to be trained, it steps aside, others begin, and it is
woken for each of its trial's epochs and at the end of the training. Only one runs at any time.
"""

import contextvars
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Annotated, Any

from greenlet import getcurrent, greenlet
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.config import Section, checked
from fmnist_sweep.record import Epoch
from fmnist_sweep.sweep.hydra_job import Job, compose, execute, failed
from fmnist_sweep.sweep.task import task_of
from fmnist_sweep.training.lanes import Lane, ProcessLane
from fmnist_sweep.training.scheduling import Request, Scheduler, train_with


class Settings(Section):
    """The keys of `hydra.launcher`; what they mean stands in conf/hydra/launcher/stacked.yaml."""

    max_stack: int = Field(ge=1)
    workers: Annotated[int, Field(ge=1)] | None


def read(values: Mapping[Any, Any]) -> Settings:
    """Checks `hydra.launcher`.

    Raises:
        ConfigError: one line with the key, its value and what is allowed.
    """
    given = {str(key): value for key, value in values.items() if key != "_target_"}
    return checked(Settings, given, "hydra.launcher.")


def launch_each(
    values: Mapping[str, Any],
    cores: int,
    config: DictConfig,
    context: HydraContext,
    task: TaskFunction,
    next_job: Callable[[], Job | None],
    on_end: Callable[[int, JobReturn], None],
) -> None:
    """See `StackedLauncher.launch_each`."""
    settings = read(values)
    on_cpu = _on_cpu(config)
    # As many stacks side by side as cores allow; a GPU takes one, in this process.
    each = OmegaConf.select(config, "trainer.threads") or 1
    workers = settings.workers or max(1, cores // each if on_cpu else 1)
    lane: type[Lane] = ProcessLane if on_cpu or workers > 1 else Lane
    threads = workers * each
    running: list[_Running] = []
    there_may_be_more = True
    with Scheduler(lane, workers, settings.max_stack, threads) as scheduler:
        try:
            while True:
                while there_may_be_more and len(running) < workers * settings.max_stack:
                    job = next_job()
                    if job is None:
                        there_may_be_more = False
                        break
                    running.append(_Running(job, config, context, task, scheduler))
                    _collect(running, on_end)
                if not running:
                    return
                scheduler.step()
                for one in running:
                    one.go_on_if_trained()
                there_may_be_more |= _collect(running, on_end)
        finally:
            for one in running:
                one.abandon()


def _on_cpu(config: DictConfig) -> bool:
    from fmnist_sweep import build
    from fmnist_sweep.cli import parsed

    try:
        return build.device(parsed(config)).type == "cpu"
    except ConfigError:  # which the trials will tell
        return True


def _collect(running: list["_Running"], on_end: Callable[[int, JobReturn], None]) -> bool:
    """Takes out the jobs that have ended and says so; whether there were any."""
    ended = [(one, one.returned) for one in running if one.returned is not None]
    for one, returned in ended:
        running.remove(one)
        on_end(one.number, returned)
    return bool(ended)


class _Running:
    """A job in its greenlet, with what is global to a process and yet its own.

    That is Hydra's configuration singleton, the handlers of the root logger and the working
    directory: they are exchanged whenever the job goes on or steps aside.
    """

    def __init__(
        self,
        job: Job,
        config: DictConfig,
        context: HydraContext,
        task: TaskFunction,
        scheduler: Scheduler,
    ) -> None:
        self.number = job[0]
        self.scheduler = scheduler
        self.requests: Sequence[Request] = ()
        self.returned: JobReturn | None = None
        self.hub = getcurrent()
        self.greenlet = greenlet(self._run)
        self.greenlet.gr_context = contextvars.copy_context()
        self.own = _Surroundings()
        self._switch(job, config, context, task)

    def _run(
        self, job: Job, config: DictConfig, context: HydraContext, task: TaskFunction
    ) -> JobReturn:
        train_with(self._train)
        return execute(compose(job, config, context, task_of(task).known_keys), context, task)

    def _train(self, requests: Sequence[Request]) -> None:
        """What training comes to here: hands requests over and does as it is called to."""
        self.requests = requests
        for request in requests:
            self._relay(request)
            self.scheduler.add(request)
        answer: Any = None
        while call := self.hub.switch(answer):
            answer = call()
        self.requests = ()

    def _relay(self, request: Request) -> None:
        """Has a request's callbacks run in the job's greenlet."""
        on_epoch, on_batches = request.on_epoch, request.on_batches

        def epoch_ended(row: Epoch) -> None:
            self._call(lambda: on_epoch(row))
            request.stop |= self.greenlet.dead

        request.on_epoch = epoch_ended
        request.on_batches = lambda progress: self._call(lambda: on_batches(progress))

    def _call(self, function: Callable[[], Any]) -> None:
        if not self.greenlet.dead:
            self._switch(function)

    def go_on_if_trained(self) -> None:
        """Lets the task go on once all that it wanted trained has been."""
        trained = self.requests and all(request.ended for request in self.requests)
        if trained and not self.greenlet.dead:
            self._switch(None)

    def abandon(self) -> None:
        """Ends the job where it stands; it does not reach its end."""
        if not self.greenlet.dead:
            with self.own:
                self.greenlet.throw()
            self.own.close()

    def _switch(self, *arguments: Any) -> None:
        try:
            with self.own:
                answer = self.greenlet.switch(*arguments)
        except Exception as error:  # not of the task, which Hydra catches, but of Hydra's part
            answer = failed(error)
        if self.greenlet.dead:
            self.returned = answer
            self.own.close()


class _Surroundings:
    """What a job has for itself although a process has but one of it; exchanged on its turns."""

    def __init__(self) -> None:
        self.kept = self._there()

    def _there(self) -> tuple[list[logging.Handler], Any, str]:
        return list(logging.getLogger().handlers), HydraConfig.instance().cfg, os.getcwd()

    def _exchange(self) -> None:
        there = self._there()
        handlers, HydraConfig.instance().cfg, folder = self.kept
        logging.getLogger().handlers[:] = handlers
        if folder != there[2]:
            os.chdir(folder)
        self.kept = there

    def __enter__(self) -> None:
        self._exchange()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exchange()

    def close(self) -> None:
        """Closes the job's log file, which it alone had."""
        for handler in self.kept[0]:
            if isinstance(handler, logging.FileHandler):
                handler.close()
