"""Work beside a command, such as pictures, for which nothing waits before the end."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from typing import Any

from fmnist_sweep.base import command
from fmnist_sweep.base.processes import enter_child_process, fork_server

# Seconds of work in which no process is started: until then there is little to do beside it.
DELAY = 10.0


class Background:
    """A process of lowest priority that does one piece of work after the other.

    Work that it has not done by the end is done at the end, by this process. A piece may thus run
    twice, and one that fails is left out.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.pool: ProcessPoolExecutor | None = None
        self.waiting: deque[Callable[[], Any]] = deque()
        self.begun: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, piece: Callable[[], Any]) -> None:
        """Add a piece of work that can be pickled."""
        self.waiting.append(piece)
        if time.monotonic() - self.began < DELAY:
            return
        with suppress(RuntimeError, OSError):  # the process has died, or cannot be started
            if self.pool is None:
                self.pool = ProcessPoolExecutor(1, mp_context=fork_server(), initializer=_begin)
            while self.waiting:
                future = self.pool.submit(self.waiting[0])
                self.begun.append((future, self.waiting.popleft()))
        self.begun = [(future, piece) for future, piece in self.begun if not future.done()]

    def close(self, seconds: float) -> int:
        """End the process, and do here what it has not done.

        Args:
            seconds: time after which no other piece is begun.

        Returns:
            The number of pieces left out.
        """
        until = time.monotonic() + seconds
        pieces = [piece for future, piece in self.begun if not future.done()] + [*self.waiting]
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
        while pieces and time.monotonic() < until:
            with suppress(Exception):
                pieces.pop(0)()
        return len(pieces)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides when to end
    enter_child_process()
    command.make_streams_robust()
    if hasattr(os, "nice"):
        os.nice(19)
