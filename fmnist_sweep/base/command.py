"""Run a command: errors as one line, standard streams that never fail, SIGINT and SIGTERM."""

import gc
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

from fmnist_sweep.base.errors import Error, describe, is_machine_fault


def run(
    main: Callable[[], object],
    explain: Callable[[Exception], str | None] = lambda error: None,
    interrupted: str = "Interrupted.",
) -> None:
    """Run a command and exit with one line if it fails.

    Args:
        main: the command.
        explain: returns the line for an error of another library, or None for a bug of this
            package, which is raised with its traceback.
        interrupted: the line to print after Ctrl-C.

    Raises:
        SystemExit: 1 with one line on standard error for a user's mistake or a machine fault,
            130 after Ctrl-C.
    """
    make_streams_robust()
    try:
        main()
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
    except Error as error:
        sys.exit(str(error))
    except Exception as error:
        line = explain(error) or _file_error_line(error)
        if line is None:
            raise
        sys.exit(line)


def _file_error_line(error: Exception) -> str | None:
    """Return the line for an error of a file or a disk, or None for any other error."""
    if is_machine_fault(error):
        return f"{describe(error)}; what has finished is kept"
    return describe(error) if isinstance(error, OSError) and error.filename else None


@contextmanager
def imports() -> Iterator[None]:
    """Import large libraries inside the block without garbage collections.

    PyTorch's objects live as long as the process. The collector would look at them several times
    during the import and again at the exit, together for more than a second.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def import_beside(module: str) -> None:
    """Import a module in a thread, while this process trains or waits for others.

    Plotting takes half a second to import. Steps leave Python free in the meantime.
    """
    threading.Thread(target=importlib.import_module, args=(module,), daemon=True).start()


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM; `number` is the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Interrupted` for SIGINT and SIGTERM; a second signal ends the process at once.

    Does nothing outside the main thread, where Python handles no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, _: FrameType | None) -> None:
        for handled in previous:
            signal.signal(handled, lambda n, _: os._exit(128 + n))
        raise Interrupted(number)

    previous = {handled: signal.getsignal(handled) for handled in (signal.SIGINT, signal.SIGTERM)}
    for handled in previous:
        signal.signal(handled, interrupt)
    try:
        yield
    finally:
        for handled, handler in previous.items():
            signal.signal(handled, handler)


def make_streams_robust() -> None:
    """Make writes to `sys.stdout` and `sys.stderr` never fail; may be called again.

    Characters that a stream cannot encode are written as `?`. A standard descriptor that was
    closed when the command started is opened on the null device; otherwise the next file that
    this process opens would be taken for a standard stream.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _RobustStream):
            continue
        if stream is None:
            # Open for the rest of the process.
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        setattr(sys, name, _RobustStream(stream))


class _RobustStream:
    """A text stream that drops text it cannot write: to a closed pipe or a full disk."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._broken = False

    def write(self, text: str) -> int:
        if not self._broken:
            try:
                return self._stream.write(text)
            except (OSError, ValueError):
                self._discard_output()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self._broken:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._discard_output()

    def _discard_output(self) -> None:
        """Send all further output to the null device, buffered text and child processes' too."""
        self._broken = True
        try:
            null_device = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null_device, self._stream.fileno())
            os.close(null_device)
        except (OSError, ValueError):  # the stream has no descriptor, or is closed
            pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
