"""Work beside a command, such as pictures, for which nothing waits before the end."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import suppress
from typing import Any

from fmnist_sweep.base import command
from fmnist_sweep.base.processes import enter_child_process, fork_server


class Background:
    """A process of lowest priority that does one piece of work after the other.

    It starts with the first piece. A piece that fails is left out.
    """

    def __init__(self) -> None:
        self.pool: ProcessPoolExecutor | None = None
        self.open: set[Future[Any]] = set()

    def submit(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Add a piece of work: a function and its arguments, all of which can be pickled."""
        if self.pool is None:
            self.pool = ProcessPoolExecutor(1, mp_context=fork_server(), initializer=_begin)
        self.open = {piece for piece in self.open if not piece.done()}
        with suppress(RuntimeError, OSError):  # the process has died, or cannot be started
            self.open.add(self.pool.submit(work, *arguments))

    def close(self, seconds: float) -> int:
        """Wait for all pieces, then end the process.

        Args:
            seconds: time to wait; pieces that have not begun by then are left out.

        Returns:
            The number of pieces left out.
        """
        if self.pool is None:
            return 0
        late = wait(self.open, seconds).not_done
        self.pool.shutdown(wait=not late, cancel_futures=True)
        self.pool = None
        return len(late)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides when to end
    enter_child_process()
    command.make_streams_robust()
    if hasattr(os, "nice"):
        os.nice(19)
