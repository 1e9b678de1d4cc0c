"""A trial's state at the end of an epoch, in a file from which training resumes bit for bit."""

import hashlib
import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fmnist_sweep.base.files import write_atomically

State = dict[str, Any]

# Seconds of training for each second spent on writing a checkpoint, at least.
TRAINING_PER_WRITING = 50
# Estimates the duration of the first write; disks measured here reached 137 to 295 MB/s.
BYTES_PER_SECOND = 100e6


class CheckpointError(ValueError):
    """A file from which training cannot resume; the message gives the reason."""


class OtherConfiguration(CheckpointError):
    """An undamaged checkpoint of a trial with another configuration."""


@dataclass
class Checkpoint:
    """The place of a trial's checkpoint and the interval at which it is written.

    path: the checkpoint file.
    configuration: the trial's configuration as text; `read` refuses a checkpoint with another one.
    seconds: minimum training time between two writes; 0 writes after every epoch.
    resume: the file from which the trial resumes, if any.
    """

    path: Path
    configuration: str
    seconds: float
    resume: Path | None = None
    _due: float | None = field(default=None, init=False)

    def begin(self, size: int) -> None:
        """Start the clock at the beginning of training.

        Args:
            size: estimated size of a checkpoint in bytes.
        """
        self._schedule_write(size / BYTES_PER_SECOND)

    def _schedule_write(self, write_seconds: float) -> None:
        wait = max(self.seconds, TRAINING_PER_WRITING * write_seconds) if self.seconds else 0
        self._due = time.monotonic() + wait

    @property
    def is_due(self) -> bool:
        """Return whether it is time to write; False before `begin`."""
        return self._due is not None and time.monotonic() >= self._due

    def write(self, state: State) -> None:
        """Write the file atomically and schedule the next write.

        Raises:
            OSError: the file cannot be written; the checkpoint stays due.
        """
        began = time.monotonic()
        body = io.BytesIO()
        torch.save({"configuration": self.configuration, **state}, body)
        content = body.getvalue()
        write_atomically(self.path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        self._schedule_write(time.monotonic() - began)


def read(path: Path, configuration: str) -> State:
    """Read a checkpoint without executing code from the file.

    Args:
        path: the checkpoint file.
        configuration: the configuration that the checkpoint must have, as text.

    Raises:
        CheckpointError: the file is damaged.
        OtherConfiguration: the checkpoint belongs to a trial with another configuration.
        OSError: the file cannot be read.
    """
    digest, _, content = path.read_bytes().partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise CheckpointError("is damaged")
    try:
        state: State = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        found = state["configuration"]
    except Exception:  # the checksum is right, but `write` has not written this content
        raise CheckpointError("is damaged") from None
    if found != configuration:
        raise OtherConfiguration("is of another configuration")
    return state
