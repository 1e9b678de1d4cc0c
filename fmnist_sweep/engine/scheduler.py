"""Which trials are trained together, where and when: groups of a kind, refilled at every epoch."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from fmnist_sweep.base.errors import first_line
from fmnist_sweep.engine import stack
from fmnist_sweep.engine import workers as lane_file
from fmnist_sweep.engine.data import DataSplits, Images
from fmnist_sweep.engine.stack import Outcome, Progress, StackKey
from fmnist_sweep.engine.step import Trial
from fmnist_sweep.engine.workers import Outcomes, Worker
from fmnist_sweep.results.record import Epoch

log = logging.getLogger(__name__)


@dataclass
class TrainingJob:
    """A trial that wants to be trained.

    on_epoch: called with each finished epoch.
    on_batches: called with the progress within an epoch, every `log_every` batches.
    stop: set it to end the trial after the epoch that it has just finished.
    told: the number of epochs passed to `on_epoch`.
    kept: the epoch whose weights the trial ends with: the best one under early stopping.
    exhausted: early stopping has ended the trial.
    error: the error that ended the trial early.
    ended: training is over; unless there was an error, the model holds its weights, on the CPU.
    """

    trial: Trial
    data: DataSplits
    batch_size: int
    compile: bool
    bf16: bool
    log_every: int
    threads: int
    on_epoch: Callable[[Epoch], None]
    on_batches: Callable[[Progress], None]
    stop: bool = False
    told: int = 0
    kept: Epoch | None = None
    exhausted: bool = False
    error: Exception | None = None
    ended: bool = False
    kind: StackKey = field(init=False)

    def __post_init__(self) -> None:
        setting = self.batch_size, self.compile, self.bf16, self.log_every, self.threads
        self.kind = stack.kind(self.trial, self.data, *setting)

    def again_alone(self) -> None:
        """To be trained once more and by itself, from its checkpoint or from the beginning.

        It has the same numbers as before; epochs that were told are not told again.
        """
        self.kind = replace(self.kind, alone="its stack has failed")
        checkpoint = self.trial.checkpoint
        if checkpoint and checkpoint.path.exists():
            checkpoint.resume = checkpoint.path

    def take(self, outcome: Outcome | Exception) -> None:
        """Record the outcome of an epoch and pass its figures on."""
        if isinstance(outcome, Exception):
            self.error = outcome
        elif outcome.figures.epoch > self.told:
            self.told = outcome.figures.epoch
            self.kept = outcome.kept
            self.exhausted = outcome.exhausted
            self.stop |= outcome.exhausted
            self.on_epoch(outcome.figures)

    def has_ended_with(self, outcome: Outcome | Exception) -> bool:
        """Tell whether that was the last epoch."""
        if isinstance(outcome, Exception):
            return True
        epoch = outcome.figures.epoch
        return epoch >= self.trial.epochs or (self.stop and epoch >= self.told)


class Scheduler:
    """Trains jobs on workers, those of a kind together.

    A trial begins, ends and is replaced at an epoch's end. One that waits joins a stack of its
    kind as long as that has fewer than `max_stack` trials and than its share of them, so that
    workers at the same kind are loaded alike; a worker without a stack begins one with whoever has
    waited longest.

    Args:
        count: of workers, which are made when jobs come.
        threads: of the CPU for all workers together; None for no limit. A trial that wants more
            than are left waits; one that wants more than all has the machine for itself.
    """

    def __init__(
        self,
        make_worker: Callable[[], Worker],
        count: int,
        max_stack: int,
        threads: int | None = None,
    ) -> None:
        self.make_worker = make_worker
        self.count = count
        self.max_stack = max_stack
        self.threads = threads
        self.waiting: list[tuple[int, TrainingJob]] = []
        self.at_work: dict[Worker, dict[int, TrainingJob]] = {}
        self.taken: dict[Worker, Images] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.at_work:
            worker.hang_up()
        until = time.monotonic() + 1
        for worker in self.at_work:
            worker.close(max(0.0, until - time.monotonic()))

    def add(self, job: TrainingJob) -> None:
        """Takes a job; it begins with the next step, if a worker is idle then."""
        if len(self.at_work) < self.count:
            self.at_work[self.make_worker()] = {}
        self.waiting.append((next(self._numbers), job))

    def step(self) -> None:
        """Puts idle workers to work, waits for news of a worker and passes it on.

        Calls jobs' `on_epoch` and `on_batches`; those whose trial has ended have `ended` set.
        """
        for worker in [worker for worker, running in self.at_work.items() if not running]:
            with self._surviving(worker):
                self._fill(worker)
        busy = [worker for worker, running in self.at_work.items() if running]
        if busy:
            self._listen(lane_file.ready(busy))

    @contextmanager
    def _surviving(self, worker: Worker) -> Iterator[None]:
        """Within it what a worker raises, as when its process has died, costs that worker alone."""
        try:
            yield
        except Exception as error:
            self._survive(self.at_work.pop(worker), error)
            self.taken.pop(worker, None)
            worker.close()
            if self.waiting:
                self.at_work[self.make_worker()] = {}

    def _survive(self, running: dict[int, TrainingJob], error: Exception) -> None:
        """Of several trials one has brought the others' worker down: by itself it will again."""
        if len(running) == 1:
            (job,) = running.values()
            job.error, job.ended = error, True
            return
        log.warning("%d trials go on, each by itself: %s", len(running), first_line(error))
        for number, job in running.items():
            job.again_alone()
            self.waiting.append((number, job))

    def _listen(self, worker: Worker) -> None:
        running = self.at_work[worker]
        outcomes: Outcomes | None = None

        def tell(told: list[Progress]) -> None:
            for progress in told:
                running[progress.number].on_batches(progress)

        with self._surviving(worker):
            outcomes = worker.event(tell)
        if outcomes is None:
            return
        for number, outcome in outcomes.items():
            running[number].take(outcome)  # what this raises is no fault of the worker
        with self._surviving(worker):
            # Only now: the last repeat of a configuration may have ended all of them.
            for number, outcome in outcomes.items():
                if running[number].has_ended_with(outcome):
                    self._end(worker, number)
            self._fill(worker)

    def _end(self, worker: Worker, number: int) -> None:
        tensors = worker.call("remove", number)
        job = self.at_work[worker][number]
        if job.error is None:
            stack.load(job.trial.model, tensors)
        del self.at_work[worker][number]
        job.ended = True

    def _fill(self, worker: Worker) -> None:
        """Lets waiting trials join a worker's stack, and starts its next epoch."""
        running = self.at_work[worker]
        while running or self.waiting:
            if not running and not self._has_threads_for(self.waiting[0][1]):
                return
            if not running:
                # Before anything is done for it, as whatever that does to the worker is its fault.
                number, first = self.waiting.pop(0)
                running[number] = first
                if self.taken.get(worker) is not first.data.train:
                    self.taken[worker] = first.data.train
                    worker.call("take", replace(first.data, test=None))
                worker.call("open", first.kind, first.trial)
                worker.call("add", number, first.trial)
            for number, job in self._joining(running):
                self.waiting.remove((number, job))
                running[number] = job
                worker.call("add", number, job.trial)
            # As one that goes on from a checkpoint may be, or its repeats may have seen to.
            for number in [n for n, one in running.items() if one.stop and not one.told]:
                self._end(worker, number)
            if running:
                worker.begin_epoch()
                return

    def _has_threads_for(self, job: TrainingJob) -> bool:
        """Whether so many of the CPU's threads are left by stacks at work."""
        stacks = [next(iter(running.values())) for running in self.at_work.values() if running]
        if self.threads is None or not stacks:
            return True
        return sum(one.threads for one in stacks) + job.threads <= self.threads

    def _joining(self, running: dict[int, TrainingJob]) -> list[tuple[int, TrainingJob]]:
        """Waiting trials of a running stack's kind, as many as it has room for."""
        kind = next(iter(running.values())).kind
        waiting = [(n, r) for n, r in self.waiting if r.kind == kind]
        if not waiting:
            return []
        # This worker, idle ones and those at the same kind.
        alike = [
            others
            for others in self.at_work.values()
            if all(other.kind == kind for other in others.values())
        ]
        total = len(waiting) + sum(map(len, alike))
        share = -(-total // len(alike))
        one = waiting[0][1]
        fits = stack.most(one.trial, one.batch_size, one.data.train.pixels.device)
        fits += len(running)
        max_stack = 1 if kind.alone else self.max_stack
        if fits < min(share, max_stack):
            log.info("Memory holds a stack of %d such trials", fits)
        return waiting[: max(0, min(share, max_stack, fits) - len(running))]


def train(jobs: Sequence[TrainingJob]) -> None:
    """Train jobs to their ends in this process, those of one stack key together.

    Raises:
        Exception: the error that ended one of them early.
    """
    with Scheduler(Worker, count=1, max_stack=max(1, len(jobs))) as scheduler:
        for job in jobs:
            scheduler.add(job)
        while not all(job.ended for job in jobs):
            scheduler.step()
    for job in jobs:
        if job.error is not None:
            raise job.error
