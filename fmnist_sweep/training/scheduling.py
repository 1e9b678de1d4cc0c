"""Which trials are trained together, where and when: groups of a kind, refilled at every epoch."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import TracebackType

from fmnist_sweep.base.errors import first_line
from fmnist_sweep.data.batches import Images, Protocol
from fmnist_sweep.record import Epoch
from fmnist_sweep.training import lanes as lane_file
from fmnist_sweep.training import stack
from fmnist_sweep.training.engine import Trial
from fmnist_sweep.training.lanes import Lane, Outcomes
from fmnist_sweep.training.stack import Kind, Progress

log = logging.getLogger(__name__)


@dataclass
class Request:
    """A trial that wants to be trained.

    on_epoch: told each finished epoch.
    on_batches: told where the trial stands, every `log_every` batches.
    stop: set by whoever wants the trial to end with the epoch that it has just finished.
    told: epochs that `on_epoch` has been told of.
    error: what kept the trial from going on.
    ended: the trial's model holds its trained weights, on the CPU, unless there was an error.
    """

    trial: Trial
    data: Protocol
    batch_size: int
    compile: bool
    bf16: bool
    log_every: int
    threads: int
    on_epoch: Callable[[Epoch], None]
    on_batches: Callable[[Progress], None]
    stop: bool = False
    told: int = 0
    error: Exception | None = None
    ended: bool = False
    kind: Kind = field(init=False)

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

    def take(self, outcome: Epoch | Exception) -> None:
        """Takes what came of an epoch."""
        if isinstance(outcome, Exception):
            self.error = outcome
        elif outcome.epoch > self.told:
            self.told = outcome.epoch
            self.on_epoch(outcome)

    def has_ended_with(self, outcome: Epoch | Exception) -> bool:
        """Whether that was its last epoch."""
        if isinstance(outcome, Exception):
            return True
        return outcome.epoch >= self.trial.epochs or (self.stop and outcome.epoch >= self.told)


class Scheduler:
    """Trains requests on lanes, those of a kind together.

    A trial begins, ends and is replaced at an epoch's end. One that waits joins a stack of its
    kind as long as that has fewer than `max_stack` trials and than its share of them, so that
    lanes at the same kind are loaded alike; a lane without a stack begins one with whoever has
    waited longest.

    Args:
        count: of lanes, which are made when requests come.
        threads: of the CPU for all lanes together; None for no limit. A trial that wants more
            than are left waits; one that wants more than all has the machine for itself.
    """

    def __init__(
        self, make_lane: Callable[[], Lane], count: int, max_stack: int, threads: int | None = None
    ) -> None:
        self.make_lane = make_lane
        self.count = count
        self.max_stack = max_stack
        self.threads = threads
        self.waiting: list[tuple[int, Request]] = []
        self.at_work: dict[Lane, dict[int, Request]] = {}
        self.taken: dict[Lane, Images] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for lane in self.at_work:
            lane.hang_up()
        until = time.monotonic() + 1
        for lane in self.at_work:
            lane.close(max(0.0, until - time.monotonic()))

    def add(self, request: Request) -> None:
        """Takes a request; it begins with the next step, if a lane is idle then."""
        if len(self.at_work) < self.count:
            self.at_work[self.make_lane()] = {}
        self.waiting.append((next(self._numbers), request))

    def step(self) -> None:
        """Puts idle lanes to work, waits for news of a lane and passes it on.

        Calls requests' `on_epoch` and `on_batches`; those whose trial has ended have `ended` set.
        """
        for lane in [lane for lane, running in self.at_work.items() if not running]:
            with self._surviving(lane):
                self._fill(lane)
        busy = [lane for lane, running in self.at_work.items() if running]
        if busy:
            self._listen(lane_file.ready(busy))

    @contextmanager
    def _surviving(self, lane: Lane) -> Iterator[None]:
        """Within it what a lane raises, as when its process has died, costs that lane alone."""
        try:
            yield
        except Exception as error:
            self._survive(self.at_work.pop(lane), error)
            self.taken.pop(lane, None)
            lane.close()
            if self.waiting:
                self.at_work[self.make_lane()] = {}

    def _survive(self, running: dict[int, Request], error: Exception) -> None:
        """Of several trials one has brought the others' lane down: by itself it will again."""
        if len(running) == 1:
            (request,) = running.values()
            request.error, request.ended = error, True
            return
        log.warning("%d trials go on, each by itself: %s", len(running), first_line(error))
        for number, request in running.items():
            request.again_alone()
            self.waiting.append((number, request))

    def _listen(self, lane: Lane) -> None:
        running = self.at_work[lane]
        outcomes: Outcomes | None = None

        def tell(told: list[Progress]) -> None:
            for progress in told:
                running[progress.number].on_batches(progress)

        with self._surviving(lane):
            outcomes = lane.event(tell)
        if outcomes is None:
            return
        for number, outcome in outcomes.items():
            running[number].take(outcome)  # what this raises is no fault of the lane
        with self._surviving(lane):
            # Only now: the last repeat of a configuration may have ended all of them.
            for number, outcome in outcomes.items():
                if running[number].has_ended_with(outcome):
                    self._end(lane, number)
            self._fill(lane)

    def _end(self, lane: Lane, number: int) -> None:
        tensors = lane.call("remove", number)
        request = self.at_work[lane][number]
        if request.error is None:
            stack.load(request.trial.model, tensors)
        del self.at_work[lane][number]
        request.ended = True

    def _fill(self, lane: Lane) -> None:
        """Lets waiting trials join a lane's stack, and starts its next epoch."""
        running = self.at_work[lane]
        while running or self.waiting:
            if not running and not self._has_threads_for(self.waiting[0][1]):
                return
            if not running:
                # Before anything is done for it, as whatever that does to the lane is its fault.
                number, first = self.waiting.pop(0)
                running[number] = first
                if self.taken.get(lane) is not first.data.train:
                    self.taken[lane] = first.data.train
                    lane.call("take", replace(first.data, test=None))
                lane.call("open", first.kind, first.trial)
                lane.call("add", number, first.trial)
            for number, request in self._joining(running):
                self.waiting.remove((number, request))
                running[number] = request
                lane.call("add", number, request.trial)
            # As one that goes on from a checkpoint may be, or its repeats may have seen to.
            for number in [n for n, one in running.items() if one.stop and not one.told]:
                self._end(lane, number)
            if running:
                lane.begin_epoch()
                return

    def _has_threads_for(self, request: Request) -> bool:
        """Whether so many of the CPU's threads are left by stacks at work."""
        stacks = [next(iter(running.values())) for running in self.at_work.values() if running]
        if self.threads is None or not stacks:
            return True
        return sum(one.threads for one in stacks) + request.threads <= self.threads

    def _joining(self, running: dict[int, Request]) -> list[tuple[int, Request]]:
        """Waiting trials of a running stack's kind, as many as it has room for."""
        kind = next(iter(running.values())).kind
        waiting = [(n, r) for n, r in self.waiting if r.kind == kind]
        if not waiting:
            return []
        # This lane, idle ones and those at the same kind.
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


def train_here(requests: Sequence[Request]) -> None:
    """Trains requests in this process, those of a kind in one stack."""
    with Scheduler(Lane, count=1, max_stack=max(1, len(requests))) as scheduler:
        for request in requests:
            scheduler.add(request)
        while not all(request.ended for request in requests):
            scheduler.step()


_trainer: ContextVar[Callable[[Sequence[Request]], None]] = ContextVar(
    "trainer", default=train_here
)


def train(requests: Sequence[Request]) -> None:
    """Trains requests to their ends, wherever this process's launcher has trials trained.

    Raises:
        Exception: what ended one of them before its time.
    """
    _trainer.get()(requests)
    for request in requests:
        if request.error is not None:
            raise request.error


def train_with(trainer: Callable[[Sequence[Request]], None]) -> None:
    """Has `train` called from this context pass its requests to `trainer`."""
    _trainer.set(trainer)
