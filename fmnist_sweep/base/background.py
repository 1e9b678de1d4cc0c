"""Work beside a command, such as pictures, for which nothing waits before the end."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from typing import Any

from fmnist_sweep.base import command
from fmnist_sweep.base.processes import enter_child_process, fork_server

# Seconds of work in which no process is started: until then there is little to do beside it.
DELAY = 10.0
# Seconds in which a piece is done, as a rule.
PIECE_SECONDS = 2.0


class Background:
    """A process of low priority that does one piece of work after the other.

    Work that it has not done by the end is done in `close`, by this process. A piece may thus run
    twice, and one that fails is left out. Leaving the context ends the process at once.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.pool: ProcessPoolExecutor | None = None
        self.waiting: deque[Callable[[], Any]] = deque()
        self.begun: list[tuple[Future[Any], Callable[[], Any]]] = []

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        self.close(0)

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
        self.begun = [(future, piece) for future, piece in self.begun if not _is_done(future)]

    def close(self, seconds: float | None = None) -> int:
        """End the process, and do here what it has not done.

        Args:
            seconds: time after which no other piece is begun; None for enough for all.

        Returns:
            The number of pieces left out.
        """
        pieces = deque(piece for future, piece in self.begun if not _is_done(future))
        pieces += self.waiting
        self.begun, self.waiting = [], pieces
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.pool = None
        until = time.monotonic() + (PIECE_SECONDS * len(pieces) if seconds is None else seconds)
        while pieces and time.monotonic() < until:
            with suppress(Exception):
                pieces.popleft()()
        return len(pieces)


def _is_done(future: Future[Any]) -> bool:
    """Return whether a piece has come to its end, which it has not if its process has died."""
    return future.done() and not isinstance(future.exception(), BrokenExecutor)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides when to end
    enter_child_process()
    command.make_streams_robust()
    if hasattr(os, "nice"):
        os.nice(10)  # lower ones get no time at all on a busy machine
