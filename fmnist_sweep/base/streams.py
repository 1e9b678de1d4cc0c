"""Standard streams that cost a command nothing: closed, missing, or of an encoding without `±`."""

import io
import os
import sys
from typing import Any, TextIO


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
