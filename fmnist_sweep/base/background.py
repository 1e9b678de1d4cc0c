"""Work beside a command, such as pictures, for which nothing waits before the end."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from fmnist_sweep.base import command
from fmnist_sweep.base.errors import MachineFault
from fmnist_sweep.base.processes import enter_child_process, fork_server, start

# Seconds of work in which no process is started: until then there is little to do beside it.
DELAY = 10.0
# Seconds in which a piece is done, as a rule.
PIECE_SECONDS = 2.0
# Pieces on their way to the process. As many fit into a pipe.
MAX_SENT = 50


class Background:
    """A process of low priority that does one piece of work after the other.

    Work that it has not done by the end is done in `close`, by this process. A piece may thus run
    twice, and one that fails is left out. Leaving the context ends the process at once.
    """

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.waiting: deque[Callable[[], Any]] = deque()
        self.sent: deque[Callable[[], Any]] = deque()  # and not known to be done
        self.process: BaseProcess | None = None
        self.connection: Connection | None = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, *_: object) -> None:
        self.close(0)

    def submit(self, piece: Callable[[], Any]) -> None:
        """Add a piece of work that can be pickled."""
        self.waiting.append(piece)
        if time.monotonic() - self.began < DELAY:
            return
        with suppress(OSError, EOFError, MachineFault):  # it has died, or cannot be started
            if self.process is None:
                self._start()
            self._take_answers()
            while self.connection and self.waiting and len(self.sent) < MAX_SENT:
                self.connection.send(self.waiting[0])
                self.sent.append(self.waiting.popleft())

    def _start(self) -> None:
        server = fork_server()
        self.connection, theirs = server.Pipe()
        self.process = server.Process(target=_serve, args=(theirs,), daemon=True)
        start(self.process)
        theirs.close()

    def _take_answers(self) -> None:
        while self.connection and self.sent and self.connection.poll():
            self.connection.recv()
            self.sent.popleft()

    def close(self, seconds: float | None = None) -> int:
        """End the process, and do here what it has not done.

        Args:
            seconds: time after which no other piece is begun; None for enough for all.

        Returns:
            The number of pieces left out.
        """
        if self.process is not None and self.process.pid is not None:
            self.process.terminate()  # after the piece that it is at
            self.process.join(1)
            self.process.kill()
        with suppress(OSError, EOFError):
            self._take_answers()
        if self.connection is not None:
            self.connection.close()
        self.process = self.connection = None
        pieces = self.waiting = self.sent + self.waiting
        self.sent = deque()
        until = time.monotonic() + (PIECE_SECONDS * len(pieces) if seconds is None else seconds)
        while pieces and time.monotonic() < until:
            with suppress(Exception):
                pieces.popleft()()
        return len(pieces)


def _serve(connection: Connection) -> None:
    """Do pieces of work until the parent closes the connection or asks for the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command decides when to end
    stopping: list[int] = []

    def stop(number: int, _: object) -> None:
        if not working:
            os._exit(0)
        stopping.append(number)

    working = False
    signal.signal(signal.SIGTERM, stop)
    enter_child_process()
    command.make_streams_robust()
    if hasattr(os, "nice"):
        os.nice(10)  # lower ones get no time at all on a busy machine
    with suppress(EOFError, OSError):
        while not stopping:
            piece = connection.recv()
            working = True
            with suppress(Exception):
                piece()
            connection.send(None)
            working = False
