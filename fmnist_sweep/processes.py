"""Processes that may die without harm to the one that started them, and that end with it."""

import functools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from typing import Any

_REQUESTS = (signal.SIGINT, signal.SIGTERM)  # to stop


class ProcessDied(Exception):
    """A process has ended with what it was at; the message says how."""


def forks_of_a_server(module: str) -> ForkServerContext:
    """Starts processes that have a module imported already.

    They are forks of a server: made at once, and unlike forks of this process without its
    threads, which OpenMP does not survive.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([module])
    return server


def died(process: BaseProcess) -> ProcessDied:
    """What to raise of a process that has ended, or is about to."""
    process.join(5)
    code = process.exitcode
    how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
    return ProcessDied(f"the process that trained it ended with {how}")


def end_with_parent() -> None:
    """Has this process end at once when the one whose `multiprocessing` started it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@functools.cache
def end_with_launcher() -> None:
    """Has this process end within a second of the one that started it, whoever that is."""
    # It may have ended already: joblib's processes and forks know which it was.
    parent = multiprocessing.parent_process()
    launcher = parent.pid if parent and parent.pid else os.getppid()

    def wait() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def cores_left() -> int | None:
    """What a launcher of several processes, such as joblib or Ray, has left to this one."""
    share = os.environ.get("OMP_NUM_THREADS", "")
    return int(share) if share.isdigit() else None


def portable(value: Any) -> Any:
    """An exception that survives its journey, whatever it holds; anything else as it is."""
    if not isinstance(value, BaseException):
        return value
    try:
        pickle.loads(pickle.dumps(value))
        return value
    except Exception:
        return RuntimeError(f"{type(value).__name__}: {value}")


def call_apart(call: Callable[[], object]) -> None:
    """Calls in a fork of this process, and waits for it.

    When this process is interrupted meanwhile so is the call.

    Raises:
        ProcessDied: the fork ended before the call did. Otherwise whatever the call raises.
    """
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_call, args=(call, theirs))
    # An interruption between the fork and the knowledge of it would leave a child to itself.
    signal.pthread_sigmask(signal.SIG_BLOCK, _REQUESTS)
    try:
        child.start()
    except OSError:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
        raise
    theirs.close()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
        error = ours.recv()
    except EOFError:
        raise died(child) from None
    except BaseException:
        child.terminate()
        raise
    finally:
        child.join(5)
        child.kill()
        child.join()
        ours.close()
    if error is not None:
        raise error


def _call(call: Callable[[], object], connection: Connection) -> None:
    for number in _REQUESTS:
        signal.signal(number, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _REQUESTS)
    error: BaseException | None = None
    try:
        call()
    except BaseException as raised:
        error = raised
        vars(error).clear()  # Hydra hangs the whole job on it, which takes minutes to pickle
    for number in _REQUESTS:
        signal.signal(number, signal.SIG_IGN)
    connection.send(portable(error))
