"""Locks between processes, which the operating system lets go of when a process dies."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows, where `filelock` uses what is there
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Keeps other processes out of a folder for as long as it lives.

    Raises:
        BlockingIOError: another process has the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._lock: Any = None
        if fcntl is None:
            self._lock = _acquired(folder.with_name(f".{folder.name}.lock"))
            return
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without such locks
            pass

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            if isinstance(self._lock, int):
                os.close(self._lock)
            elif self._lock is not None:
                self._lock.release()


class LifeLock:
    """A file that says that a process lives: it is locked until `close`, or the process's end.

    Unlike other locks it is not held on by a fork of the process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any
        if fcntl is None:
            self._lock = _acquired(path)
            return
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.lockf(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Says that the process is done with; the file is removed."""
        if isinstance(self._lock, int):
            os.close(self._lock)
        else:
            self._lock.release()
        self.path.unlink(missing_ok=True)

    @staticmethod
    def is_held(path: Path) -> bool:
        """Whether another process lives that holds a file; one left behind is removed."""
        if not path.exists():
            return False
        try:
            if fcntl is None:
                _acquired(path).release()
            else:
                with open(path, "r+b") as file:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        path.unlink(missing_ok=True)
        return False


def _acquired(path: Path) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BlockingIOError(f"{path}: another process holds it") from None
    return lock
