"""A trial's state at an epoch's end, in a file from which it goes on with the same numbers."""

import hashlib
import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fmnist_sweep.base.files import write_atomically

State = dict[str, Any]

# What is written takes at most one in so many seconds of a trial's time; how long the first file
# will take is guessed from its size. Disks here took 137 to 295 MB/s.
SHARE = 50
BYTES_PER_SECOND = 100e6


class CheckpointError(ValueError):
    """A file that cannot be gone on from; the message says why."""


class OtherConfiguration(CheckpointError):
    """A good file, but of a trial with other keys."""


@dataclass
class Checkpoint:
    """Where and how often a trial's state is kept.

    path: of the file.
    whose: the trial's configuration, as text; a state of another one is refused.
    seconds: of training between two writes, at least.
    resume: the file that the trial goes on from, if any.
    """

    path: Path
    whose: str
    seconds: float
    resume: Path | None = None
    _due: float | None = field(default=None, init=False)

    def begin(self, size: int) -> None:
        """Starts the clock of a trial that begins to train, whose state has so many bytes."""
        self._wait_for(size / BYTES_PER_SECOND)

    def _wait_for(self, seconds: float) -> None:
        """Puts off the next write, which may take so long."""
        wait = max(self.seconds, SHARE * seconds) if self.seconds else 0
        self._due = time.monotonic() + wait

    @property
    def is_due(self) -> bool:
        return self._due is not None and time.monotonic() >= self._due

    def write(self, state: State) -> None:
        """Writes the file whole or not at all; a failed write is the next one's business."""
        began = time.monotonic()
        body = io.BytesIO()
        torch.save({"whose": self.whose, **state}, body)
        content = body.getvalue()
        write_atomically(self.path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        self._wait_for(time.monotonic() - began)


def read(path: Path, whose: str) -> State:
    """Reads a state; nothing in the file is executed.

    Raises:
        CheckpointError: the file is damaged; `OtherConfiguration`: it is another trial's.
        OSError: it cannot be read.
    """
    digest, _, content = path.read_bytes().partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise CheckpointError("is damaged")
    try:
        state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        owner = state["whose"]
    except Exception:  # not what `write` has written, whatever its checksum says
        raise CheckpointError("is damaged") from None
    if owner != whose:
        raise OtherConfiguration("is of another configuration")
    return state
