"""The scheduler: assigns trials to stacks and stacks to workers, and refills stacks every epoch."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from fmnist_sweep.base.errors import first_line
from fmnist_sweep.engine import stack
from fmnist_sweep.engine.checkpoint import State
from fmnist_sweep.engine.data import DataSplits, Examples
from fmnist_sweep.engine.stack import Outcome, Progress, StackKey
from fmnist_sweep.engine.step import Trial
from fmnist_sweep.engine.workers import Outcomes, Worker, wait_for_event
from fmnist_sweep.results.record import Epoch

log = logging.getLogger(__name__)

# Epochs that a trial must have left to be worth the move to another worker.
MIN_HANDED_OVER = 3


@dataclass
class TrainingJob:
    """A trial to be trained, with its progress.

    trial: the trial.
    data: its examples.
    batch_size: number of examples in a batch.
    compile: run the step under `torch.compile`.
    bf16: see `FunctionalModel`.
    log_every: number of batches between two calls of `on_batches`.
    threads: number of CPU threads.
    on_epoch: called with the metrics of each finished epoch.
    on_batches: called with the progress within an epoch.
    stop: set it to end the trial after the last finished epoch.
    pause: set it with `stop` to write a checkpoint instead, from which the trial can go on later.
    hold: set it to keep the trial, and its stack, from beginning another epoch.
    state: the state that the trial begins with, instead of its checkpoint; None for none.
    reported_epochs: number of epochs passed to `on_epoch`.
    kept: the epoch whose weights the trial ends with; the best epoch under early stopping.
    exhausted: early stopping has ended the trial.
    error: the exception that ended the trial early.
    ended: training is over. The model holds its weights, on the CPU, unless there was an error or
        a pause.
    stack_key: jobs with equal keys can be trained in the same stack.
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
    pause: bool = False
    hold: bool = False
    state: State | None = None
    reported_epochs: int = 0
    kept: Epoch | None = None
    exhausted: bool = False
    error: Exception | None = None
    ended: bool = False
    stack_key: StackKey = field(init=False)

    def __post_init__(self) -> None:
        settings = self.batch_size, self.compile, self.bf16, self.log_every, self.threads
        self.stack_key = stack.stack_key(self.trial, self.data, *settings)

    @property
    def remaining_epochs(self) -> int:
        """Epochs that are left, if nothing stops the trial early."""
        return self.trial.epochs - self.reported_epochs

    def retry_alone(self) -> None:
        """Prepare to train the trial again by itself, from its checkpoint or from the beginning.

        Training is deterministic: the metrics are the same as before, and epochs that have been
        reported are not reported again.
        """
        self.stack_key = replace(self.stack_key, why_alone="its stack has failed")
        checkpoint = self.trial.checkpoint
        if checkpoint and checkpoint.path.exists():
            checkpoint.resume = checkpoint.path

    def record_outcome(self, outcome: Outcome | Exception) -> None:
        """Record the outcome of an epoch and report its metrics, unless they have been reported."""
        if isinstance(outcome, Exception):
            self.error = outcome
        elif outcome.metrics.epoch > self.reported_epochs:
            self.reported_epochs = outcome.metrics.epoch
            self.kept = outcome.kept
            self.exhausted = outcome.exhausted
            self.stop |= outcome.exhausted
            self.on_epoch(outcome.metrics)

    def ends_with(self, outcome: Outcome | Exception) -> bool:
        """Return whether the epoch with this outcome is the last."""
        if isinstance(outcome, Exception):
            return True
        epoch = outcome.metrics.epoch
        return epoch >= self.trial.epochs or (self.stop and epoch >= self.reported_epochs)


class JobScheduler:
    """Trains jobs on workers; jobs with the same stack key share a stack.

    Trials start, end and are replaced between epochs. A waiting trial joins a stack with its stack
    key if this has fewer than `max_stack` trials and fewer than its share: the trials of a key are
    spread evenly over the workers with this key. An idle worker begins a stack with the trial that
    has waited longest. If none waits, it takes over half of the next stack that ends an epoch.

    Args:
        make_worker: makes a worker; called when jobs are added.
        count: maximum number of workers.
        max_stack: maximum number of trials in a stack.
        threads: number of CPU threads for all workers together; None for no limit. A trial waits
            until as many threads as it needs are free. A trial that needs more than `threads`
            waits until no other stack is running.
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
        self.running: dict[Worker, dict[int, TrainingJob]] = {}
        self.loaded_data: dict[Worker, Examples] = {}
        self._numbers = itertools.count()
        self._in_epoch: set[Worker] = set()

    def __enter__(self) -> "JobScheduler":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.running:
            worker.hang_up()
        deadline = time.monotonic() + 1
        for worker in self.running:
            worker.close(max(0.0, deadline - time.monotonic()))

    def add(self, job: TrainingJob) -> None:
        """Add a job to the queue; an idle worker can start it in the next `step`."""
        if len(self.running) < self.count:
            self.running[self.make_worker()] = {}
        self.waiting.append((next(self._numbers), job))

    def step(self) -> None:
        """Start jobs on idle workers, then wait for an event of a worker and process it.

        Calls the jobs' `on_epoch` and `on_batches`, and sets `ended` of jobs that have ended.
        """
        for worker in [worker for worker in self.running if worker not in self._in_epoch]:
            with self._contain_failure(worker):
                self._start_epoch(worker)
        busy = [worker for worker in self.running if worker in self._in_epoch]
        if busy:
            self._process_event(wait_for_event(busy))

    @property
    def is_training(self) -> bool:
        """True if a worker is within an epoch."""
        return bool(self._in_epoch)

    def copy(self, source: TrainingJob, target: TrainingJob, trial: Trial) -> None:
        """Let a job continue as another trial, from the weights of another job.

        Both jobs hold, after the same epoch. The target keeps its history.

        Raises:
            ProcessDied: a worker has died.

        Args:
            source: the job whose weights, optimizer state and statistics are copied.
            target: the job that continues from them.
            trial: the target's trial from now on; it can share a step with the source's.
        """
        state = self.state(source)
        worker, number = self._place(target)
        replaced = worker.call("release", number)
        kept = {name: replaced[name] for name in ("history", "kept_epoch", "best")}
        target.trial, target.state = trial, {**state, **kept}
        worker.call("add", number, trial, target.state)

    def state(self, job: TrainingJob) -> State:
        """Return the state of a job that holds."""
        worker, number = self._place(job)
        state: State = worker.call("state", number)
        return state

    def _place(self, job: TrainingJob) -> tuple[Worker, int]:
        """Return the worker that trains a job, and the job's number."""
        return next(
            (worker, number)
            for worker, jobs in self.running.items()
            for number, other in jobs.items()
            if other is job
        )

    @contextmanager
    def _contain_failure(self, worker: Worker, blame: bool = True) -> Iterator[None]:
        """Replace the worker if the body raises, for example because its process has died.

        Args:
            worker: the worker.
            blame: whether a job that was by itself is at fault.
        """
        try:
            yield
        except Exception as error:
            self._in_epoch.discard(worker)
            self._requeue(self.running.pop(worker), error, blame)
            self.loaded_data.pop(worker, None)
            worker.close()
            if self.waiting:
                self.running[self.make_worker()] = {}

    def _requeue(self, jobs: dict[int, TrainingJob], error: Exception, blame: bool) -> None:
        """Retry the jobs of a failed worker, each by itself; end a job that was by itself already.

        Presumably one job has caused the failure and will fail again.
        """
        if len(jobs) == 1 and blame:
            (job,) = jobs.values()
            job.error, job.ended = error, True
            return
        log.warning("%d trials continue, each by itself: %s", len(jobs), first_line(error))
        for number, job in jobs.items():
            job.retry_alone()
            self.waiting.append((number, job))

    def _process_event(self, worker: Worker) -> None:
        jobs = self.running[worker]
        outcomes: Outcomes | None = None

        def report(progress_of_trials: list[Progress]) -> None:
            for progress in progress_of_trials:
                jobs[progress.number].on_batches(progress)

        with self._contain_failure(worker):
            outcomes = worker.event(report)
        if outcomes is None:
            return
        self._in_epoch.discard(worker)
        for number, outcome in outcomes.items():
            # Outside _contain_failure: an error of a callback is no failure of the worker.
            jobs[number].record_outcome(outcome)
        with self._contain_failure(worker):
            # After all callbacks, because one trial's callback may stop the other repeats.
            for number, outcome in outcomes.items():
                if jobs[number].ends_with(outcome):
                    self._end(worker, number)
            idle = self._idle_worker(jobs)
            if idle is not None:
                self._hand_over_half(worker, idle)
            self._start_epoch(worker)

    def _idle_worker(self, jobs: dict[int, TrainingJob]) -> Worker | None:
        """Return a worker that can take over trials of a stack, if it is worth it."""
        long_ones = [job for job in jobs.values() if job.remaining_epochs >= MIN_HANDED_OVER]
        if any(job.hold for job in jobs.values()):
            return None
        if self.waiting or len(long_ones) < 2 or not self._has_threads_for(long_ones[0]):
            return None
        return next((worker for worker, others in self.running.items() if not others), None)

    def _hand_over_half(self, worker: Worker, idle: Worker) -> None:
        """Continue half of a stack's trials, those with the most epochs left, on an idle worker."""
        jobs = self.running[worker]
        order = sorted(jobs, key=lambda number: (jobs[number].remaining_epochs, number))
        chosen = order[-(len(order) // 2) :]
        states = {number: worker.call("release", number) for number in chosen}
        taken = self.running[idle] = {number: jobs.pop(number) for number in chosen}
        with self._contain_failure(idle, blame=False):
            self._open(idle, taken[chosen[0]])
            for number, job in taken.items():
                idle.call("add", number, job.trial, states[number])
            self._begin_epoch(idle)

    def _open(self, worker: Worker, first: TrainingJob) -> None:
        """Begin an empty stack for trials like this one."""
        if self.loaded_data.get(worker) is not first.data.train:
            self.loaded_data[worker] = first.data.train
            worker.call("load_data", replace(first.data, test=None))
        worker.call("open", first.stack_key, first.trial)

    def _end(self, worker: Worker, number: int) -> None:
        job = self.running[worker][number]
        if job.pause and job.error is None:
            worker.call("pause", number)
        else:
            tensors = worker.call("remove", number)
            if job.error is None:
                stack.load(job.trial.model, tensors)
        del self.running[worker][number]
        job.ended = True

    def _start_epoch(self, worker: Worker) -> None:
        """Add waiting trials to the worker's stack or begin a stack, and start its next epoch."""
        jobs = self.running[worker]
        while jobs or self.waiting:
            if not jobs and not self._has_threads_for(self.waiting[0][1]):
                return
            if not jobs:
                # Assigned before any call of the worker: a failure of the call is this job's fault.
                number, first = self.waiting.pop(0)
                jobs[number] = first
                self._open(worker, first)
                worker.call("add", number, first.trial, first.state)
            for number, job in self._jobs_to_join(jobs):
                self.waiting.remove((number, job))
                jobs[number] = job
                worker.call("add", number, job.trial, job.state)
            # Stopped before their first report, by their checkpoint or by their repeats' callbacks.
            stopped = [n for n, job in jobs.items() if job.stop and not job.reported_epochs]
            for number in stopped:
                self._end(worker, number)
            if any(job.hold for job in jobs.values()):
                return
            if jobs:
                self._begin_epoch(worker)
                return

    def _begin_epoch(self, worker: Worker) -> None:
        worker.begin_epoch()
        self._in_epoch.add(worker)

    def _has_threads_for(self, job: TrainingJob) -> bool:
        # All jobs of a stack have the same number of threads.
        stacks = [next(iter(jobs.values())) for jobs in self.running.values() if jobs]
        if self.threads is None or not stacks:
            return True
        return sum(first.threads for first in stacks) + job.threads <= self.threads

    def _jobs_to_join(self, jobs: dict[int, TrainingJob]) -> list[tuple[int, TrainingJob]]:
        """Return the waiting jobs that may join a running stack now."""
        stack_key = next(iter(jobs.values())).stack_key
        waiting = [(number, job) for number, job in self.waiting if job.stack_key == stack_key]
        if not waiting:
            return []
        # The stacks with this key, among them this worker's, and the empty ones of idle workers.
        stacks = [
            others
            for others in self.running.values()
            if all(other.stack_key == stack_key for other in others.values())
        ]
        total = len(waiting) + sum(map(len, stacks))
        share = -(-total // len(stacks))
        first = waiting[0][1]
        fits = len(jobs) + stack.max_stack_size(first.trial, first.batch_size, first.data)
        max_stack = 1 if stack_key.why_alone else self.max_stack
        if fits < min(share, max_stack):
            log.info("Memory holds a stack of %d such trials", fits)
        return waiting[: max(0, min(share, max_stack, fits) - len(jobs))]


def train(jobs: Sequence[TrainingJob]) -> None:
    """Train jobs in this process until all have ended.

    Raises:
        Exception: the error of the first job that was ended by an error.
    """
    with JobScheduler(Worker, count=1, max_stack=max(1, len(jobs))) as scheduler:
        for job in jobs:
            scheduler.add(job)
        while not all(job.ended for job in jobs):
            scheduler.step()
    for job in jobs:
        if job.error is not None:
            raise job.error
