"""What every `python -m` command has around it: streams that hold, mistakes in one line."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

from fmnist_sweep.base.errors import Error, describe, is_machine_fault


def run(
    main: Callable[[], object],
    explain: Callable[[Exception], str | None] = lambda error: None,
    interrupted: str = "Interrupted.",
) -> None:
    """Runs a command.

    Args:
        explain: the line for an error of another library, or None for a fault of ours, which is
            raised with its traceback.
        interrupted: what to say after Ctrl-C.

    Raises:
        SystemExit: 1 with one line on standard error for a user's mistake or the machine's fault,
            130 after Ctrl-C.
    """
    make_forgiving()
    try:
        main()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
    except Error as error:
        sys.exit(str(error))
    except Exception as error:
        line = explain(error) or _of_a_file(error)
        if line is None:
            raise
        sys.exit(line)


def _of_a_file(error: Exception) -> str | None:
    """What to say of a file or a disk that refuses; None for any other error."""
    if is_machine_fault(error):
        return f"{describe(error)}; what has finished is kept"
    return describe(error) if isinstance(error, OSError) and error.filename else None


class _Forgiving:
    """A text stream that drops what it cannot write: `head` has closed it, its disk is full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False

    def write(self, text: str) -> int:
        if not self._broken:
            try:
                return self._stream.write(text)
            except (OSError, ValueError):
                self._drop()
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._broken:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._drop()

    def _drop(self) -> None:
        """Sends everything further, what is still in buffers and children's lines too, nowhere."""
        self._broken = True
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        except (OSError, ValueError):  # it has no file below it, or is closed
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_forgiving() -> None:
    """Has `sys.stdout` and `sys.stderr` of this process forgive; may be called again.

    Characters that their encoding lacks are written as `?`. A descriptor that the command was
    started without is opened on nothing, so that no file of ours is taken for a stream.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _Forgiving):
            continue
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, as long as the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        setattr(sys, name, _Forgiving(stream))


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into `Interrupted`; the second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        for kind in before:
            signal.signal(kind, lambda n, _: os._exit(128 + n))
        raise Interrupted(number)

    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    for kind in before:
        signal.signal(kind, stop)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
