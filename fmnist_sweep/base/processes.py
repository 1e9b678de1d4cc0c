"""Processes that may die without harm to the one that started them, and that end with it.

None of them is a fork of this process: it may have run PyTorch, whose threads (OpenMP's on a CPU,
CUDA's on a GPU) a fork does not have and waits for without end.
"""

import functools
import multiprocessing
import os
import pickle
import signal
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from multiprocessing.util import get_temp_dir
from types import ModuleType
from typing import Any

import cloudpickle

from fmnist_sweep.base import command
from fmnist_sweep.base.errors import MachineFault, ProcessDied, one_line

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A socket's path has at most 107 bytes on Linux, 103 on macOS; ours ends in about 40 of its own.
_LONGEST_TEMPORARY = 60

_ends_with_parent = False


def fork_server(*modules: str) -> ForkServerContext | SpawnContext:
    """Makes processes that have modules imported already: forks of a server that runs nothing.

    On Windows, which cannot fork, each of them imports for itself.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(modules))
    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_TEMPORARY:
        _choose_short_folder()
    return server


def _choose_short_folder() -> None:
    """Has `multiprocessing` put its sockets where their paths fit, whatever TMPDIR says."""
    usual = tempfile.tempdir
    tempfile.tempdir = "/tmp"
    try:
        get_temp_dir()  # which it remembers
    finally:
        tempfile.tempdir = usual


def start(process: BaseProcess) -> None:
    """Starts a process of the fork server.

    Raises:
        MachineFault: the machine starts none, as with too many of them.
    """
    try:
        if "forkserver" in multiprocessing.get_all_start_methods():
            ensure_running()  # now: what it starts has this process's blocked signals
        # An interruption between the start and the knowledge of it would leave a child to itself.
        _block(True)
        try:
            process.start()
        finally:
            _block(False)
    except (OSError, EOFError) as error:
        raise MachineFault(f"no process can be started ({one_line(error)})") from None


def _block(on: bool) -> None:
    """Has requests to stop wait, or no longer; Windows has no such thing."""
    if hasattr(signal, "pthread_sigmask"):
        how = signal.SIG_BLOCK if on else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, _STOP_SIGNALS)


def died(process: BaseProcess) -> ProcessDied:
    """What to raise of a process that has ended, or is about to."""
    process.join(5)
    code = process.exitcode
    how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
    return ProcessDied(f"the process that trained it ended with {how}")


def end_with_parent() -> None:
    """Has this process end at once when the one whose `multiprocessing` started it does."""
    global _ends_with_parent
    parent = multiprocessing.parent_process()
    assert parent is not None
    _ends_with_parent = True

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@functools.cache
def end_with_launcher() -> None:
    """Has this process end within a second of the one that started it, whoever that is."""
    if _ends_with_parent:
        return
    # It may have ended already: joblib's processes know which it was.
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
    return int(share) if share.isdigit() and int(share) else None


def cores() -> int:
    """Cores for this process: those of the machine within its affinity and its container's quota.

    The variable LOKY_MAX_CPU_COUNT can lower it.
    """
    import joblib

    return int(joblib.cpu_count())


def portable(value: Any) -> Any:
    """An exception that survives its journey, whatever it holds; anything else as it is."""
    if not isinstance(value, BaseException):
        return value
    try:
        pickle.loads(pickle.dumps(value))
        return value
    except Exception:
        return RuntimeError(f"{type(value).__name__}: {value}")


def libraries_of_main() -> list[str]:
    """The installed libraries that this command's own script has imported."""
    folders = {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    found = set()
    for value in vars(sys.modules["__main__"]).values():
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
        file = getattr(sys.modules.get(str(name)), "__file__", None) or ""
        if any(os.path.realpath(file).startswith(folder + os.sep) for folder in folders):
            found.add(str(name))
    return sorted(found)


def call_in_process(call: Callable[[], Any], *modules: str) -> Any:
    """Calls in a process of its own and waits for it, with this one's environment and directory.

    When this process is interrupted meanwhile, so is the call.

    Args:
        call: travels by `cloudpickle`, as does what it returns.
        modules: imported by the processes' server beforehand, once.

    Raises:
        ProcessDied: the process ended before the call did. Otherwise whatever the call raises.
        MachineFault: no process can be started.
    """
    server = fork_server(*modules)
    ours, theirs = server.Pipe()
    child = server.Process(target=_serve_call, args=(theirs,))
    try:
        start(child)
        theirs.close()
        ours.send((dict(os.environ), os.getcwd()))
        ours.send_bytes(cloudpickle.dumps(call))
        returned, error = pickle.loads(ours.recv_bytes())
    except (EOFError, ConnectionError):
        raise died(child) from None
    except BaseException:
        if child.pid is not None:
            child.terminate()
        raise
    finally:
        if child.pid is not None:
            child.join(5)
            child.kill()
            child.join()
        ours.close()
    if error is not None:
        raise error
    return returned


def _serve_call(connection: Connection) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    _block(False)
    end_with_parent()
    command.make_forgiving()
    returned, error = None, None
    try:
        environment, folder = connection.recv()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        returned = pickle.loads(connection.recv_bytes())()
    except BaseException as raised:
        error = raised
        vars(error).clear()  # Hydra hangs the whole job on it, which takes minutes to pickle
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    connection.send_bytes(cloudpickle.dumps((returned, portable(error))))
