"""Child processes: they may die without harm to their parent, and they exit when it does.

No child is a fork of this process, which may have run PyTorch. A fork lacks PyTorch's threads
(OpenMP's on a CPU, CUDA's on a GPU) and would wait for them without end.
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
from contextlib import suppress
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
# A socket's path has at most 107 bytes on Linux and 103 on macOS. About 40 of them follow the
# temporary directory.
_MAX_TEMP_DIR_BYTES = 60

_NVML_VARIABLE = "PYTORCH_NVML_BASED_CUDA_CHECK"

_exits_with_parent = False


def fork_server(*modules: str) -> ForkServerContext | SpawnContext:
    """Return a context whose processes are forks of a server that has only imported modules.

    On Windows, which cannot fork, each process imports for itself.

    Args:
        modules: names of the modules that the server imports before its first fork; none to leave
            them as they are.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    if modules:
        server.set_forkserver_preload(list(modules))
    if len(os.fsencode(tempfile.gettempdir())) > _MAX_TEMP_DIR_BYTES:
        _put_sockets_in_tmp()
    return server


def start_server(*modules: str) -> None:
    """Start the fork server in the background: it imports while this process does other work.

    If the machine starts no process, do nothing; `start` reports it.

    Args:
        modules: as in `fork_server`; only the first call in a process has an effect.
    """
    fork_server(*modules)
    with suppress(OSError, EOFError):
        _ensure_server()


def _ensure_server() -> None:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    # Ctrl-C would print the server's traceback. A signal that is ignored at the start stays so.
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    # Modules that the server imports may ask PyTorch whether there is a GPU. Without the variable
    # that starts CUDA, which the server's forks could then not use.
    chosen = os.environ.get(_NVML_VARIABLE)
    os.environ.setdefault(_NVML_VARIABLE, "1")
    try:
        ensure_running()
    finally:
        if chosen is None:
            del os.environ[_NVML_VARIABLE]
        if in_main:
            signal.signal(signal.SIGINT, handler)


def _put_sockets_in_tmp() -> None:
    """Let `multiprocessing` make its sockets in /tmp, because paths in TMPDIR are too long."""
    previous = tempfile.tempdir
    tempfile.tempdir = "/tmp"
    try:
        get_temp_dir()  # multiprocessing keeps the first answer
    finally:
        tempfile.tempdir = previous


def start(process: BaseProcess) -> None:
    """Start a process of the fork server.

    Raises:
        MachineFault: no process can be started, for example because too many are running.
    """
    # Within a job of joblib the default is a method of its own, which our processes do not know.
    chosen = multiprocessing.get_start_method(allow_none=True)
    if chosen not in (None, *multiprocessing.get_all_start_methods()):
        multiprocessing.set_start_method(None, force=True)
    try:
        _ensure_server()  # before signals are blocked: the server's processes inherit the mask
        # An interruption before `start` returns would leave behind an unknown child.
        _block_stop_signals(True)
        try:
            process.start()
        finally:
            _block_stop_signals(False)
    except (OSError, EOFError) as error:
        raise MachineFault(f"no process can be started ({one_line(error)})") from None


def _block_stop_signals(block: bool) -> None:
    """Block or unblock SIGINT and SIGTERM, except on Windows, where signals cannot be blocked."""
    if hasattr(signal, "pthread_sigmask"):
        how = signal.SIG_BLOCK if block else signal.SIG_UNBLOCK
        signal.pthread_sigmask(how, _STOP_SIGNALS)


def process_died(process: BaseProcess) -> ProcessDied:
    """Return the error for a process that has ended, or ends within 5 s, with how it ended."""
    process.join(5)
    code = process.exitcode
    how = f"signal {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"
    return ProcessDied(f"the process that trained it ended with {how}")


def enter_child_process() -> None:
    """Prepare this child process: exit when its parent does, and start processes as usual.

    A child of the fork server has "forkserver" as its default start method. A lock that a library
    makes, such as tqdm's, is then registered with the resource tracker. If the child is killed,
    the tracker prints a warning of a leaked semaphore. The platform's default method avoids it.
    """
    global _exits_with_parent
    multiprocessing.set_start_method(None, force=True)
    parent = multiprocessing.parent_process()
    assert parent is not None
    _exits_with_parent = True

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@functools.cache
def exit_with_launcher() -> None:
    """Exit this process within a second of the process that started it."""
    if _exits_with_parent:
        return
    # The launcher may have ended already; a process of joblib still knows its id.
    parent = multiprocessing.parent_process()
    launcher = parent.pid if parent and parent.pid else os.getppid()

    def wait() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def cores_from_environment() -> int | None:
    """Return the cores that OMP_NUM_THREADS grants this process, or None if it is not set.

    Launchers of several processes, such as joblib and Ray, set the variable.
    """
    share = os.environ.get("OMP_NUM_THREADS", "")
    return int(share) if share.isdigit() and int(share) else None


def cores() -> int:
    """Return the number of cores within this process's affinity and its container's quota.

    The environment variable LOKY_MAX_CPU_COUNT can lower the number.
    """
    import joblib

    return int(joblib.cpu_count())


def picklable_error(value: Any) -> Any:
    """Return an exception, replaced by a RuntimeError if it cannot be pickled.

    Any other value is returned unchanged.
    """
    if not isinstance(value, BaseException):
        return value
    try:
        pickle.loads(pickle.dumps(value))
        return value
    except Exception:
        return RuntimeError(f"{type(value).__name__}: {value}")


def libraries_of_main() -> list[str]:
    """Return the names of the modules of installed libraries that `__main__` has imported from."""
    folders = {os.path.realpath(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    found = set()
    for value in vars(sys.modules["__main__"]).values():
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
        file = getattr(sys.modules.get(str(name)), "__file__", None) or ""
        if any(os.path.realpath(file).startswith(folder + os.sep) for folder in folders):
            found.add(str(name))
    return sorted(found)


def call_in_process(call: Callable[[], Any], *modules: str) -> Any:
    """Run a call in a child process and return its result.

    The child has this process's environment variables and working directory. An interruption of
    this process interrupts the call.

    Args:
        call: a callable that `cloudpickle` can pickle, as it can the result.
        modules: names of the modules that the fork server imports, once.

    Raises:
        ProcessDied: the child ended before the call did.
        MachineFault: no process can be started.
        Exception: whatever the call raises.
    """
    server = fork_server(*modules)
    connection, child_connection = server.Pipe()
    child = server.Process(target=_serve_call, args=(child_connection,))
    try:
        start(child)
        child_connection.close()
        connection.send((dict(os.environ), os.getcwd()))
        connection.send_bytes(cloudpickle.dumps(call))
        returned, error = pickle.loads(connection.recv_bytes())
    except (EOFError, ConnectionError):
        raise process_died(child) from None
    except BaseException:
        if child.pid is not None:
            child.terminate()
        raise
    finally:
        if child.pid is not None:
            child.join(5)
            child.kill()
            child.join()
        connection.close()
    if error is not None:
        raise error
    return returned


def _serve_call(connection: Connection) -> None:
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    _block_stop_signals(False)
    enter_child_process()
    command.make_streams_robust()
    returned, error = None, None
    try:
        environment, folder = connection.recv()
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        returned = pickle.loads(connection.recv_bytes())()
    except BaseException as raised:
        error = raised
        vars(error).clear()  # Hydra attaches the whole job, which takes minutes to pickle
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    connection.send_bytes(cloudpickle.dumps((returned, picklable_error(error))))
