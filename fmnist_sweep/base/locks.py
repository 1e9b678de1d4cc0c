"""Locks between processes, which the operating system releases when a process ends."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows, where `filelock` uses the system's own locks
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """An exclusive lock on a folder, held as long as the object exists.

    Args:
        folder: an existing folder.

    Raises:
        BlockingIOError: another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        self._lock: Any = None
        if fcntl is None:
            self._lock = _acquire(folder.with_name(f".{folder.name}.lock"))
            return
        self._lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # the file system has no locks
            pass

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            if isinstance(self._lock, int):
                os.close(self._lock)
            elif self._lock is not None:
                self._lock.release()


class LifeLock:
    """A file that shows that a process is alive: locked until `close` or the end of the process.

    A fork of the process does not hold the lock.

    Args:
        path: the file, made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: Any
        if fcntl is None:
            self._lock = _acquire(path)
            return
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.lockf(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        """Release the lock and remove the file."""
        if isinstance(self._lock, int):
            os.close(self._lock)
        else:
            self._lock.release()
        self.path.unlink(missing_ok=True)

    @staticmethod
    def is_held(path: Path) -> bool:
        """Return whether another living process holds the lock; if none does, remove the file."""
        if not path.exists():
            return False
        try:
            if fcntl is None:
                _acquire(path).release()
            else:
                with open(path, "r+b") as file:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        path.unlink(missing_ok=True)
        return False


def _acquire(path: Path) -> FileLock:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BlockingIOError(f"{path}: another process holds it") from None
    return lock
