"""Fetch the data set: from Debian's installed package, by torchvision or by apt."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from fmnist_sweep.base.errors import DataError
from fmnist_sweep.task.config import DATA_VARIABLE
from fmnist_sweep.task.data.idx import SHA256, SourceError, gunzip, inspect

log = logging.getLogger(__name__)

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CONNECT_SECONDS = 5  # for a host to answer, so that a machine without a network fails soon
STALL_SECONDS = 20  # without receiving a byte
FETCH_SECONDS = 600  # for a whole download: 30 MB at 50 kB/s

# Programs for `python -c`.
_PROBE = """
import sys
from urllib.request import Request, urlopen
urlopen(Request(sys.argv[1], method="HEAD"), timeout=float(sys.argv[2]))
"""
# torchvision sets no timeout and would wait without end for a silent host.
_DOWNLOAD = """
import socket, sys
from torchvision.datasets import FashionMNIST
socket.setdefaulttimeout(float(sys.argv[3]))
FashionMNIST.mirrors = [sys.argv[2]]
FashionMNIST(sys.argv[1], download=True)
"""
# Runs a command that Linux kills when the thread that started it ends, for whatever reason.
_TIE_TO_PARENT = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def fetch(folder: Path, reason: str) -> str:
    """Fetch all four files from the first source that has them.

    Args:
        folder: the folder to put the files into, made if it does not exist.
        reason: why the data set must be fetched, for the log and the error.

    Returns:
        The source's name.

    Raises:
        DataError: no source has the files; the message has the reason of each.
    """
    log.info("Data source: %s; fetching", reason)
    tried = [reason]
    folder.mkdir(parents=True, exist_ok=True)
    sources: tuple[tuple[str, Callable[[Path], Path]], ...] = (
        (f"Debian package {DEBIAN_PACKAGE}", _find_installed),
        ("torchvision download", _download_torchvision),
        (f"apt-get download {DEBIAN_PACKAGE}", _download_apt),
    )
    for name, take in sources:
        # Each process fetches into a temporary folder, so that several can fetch at the same time
        # and put the same bytes in place. A killed download may still write into the folder while
        # it is removed.
        with tempfile.TemporaryDirectory(
            dir=folder, prefix=".fetching-", ignore_cleanup_errors=True
        ) as scratch:
            # Absolute: apt looks for a relative path in its own folders.
            private = Path(scratch).resolve()
            try:
                _unpack(take(private), private)
            except SourceError as error:
                tried.append(f"{name}: {error}")
                log.info("Data source: %s", tried[-1])
                continue
            for file in SHA256:
                if not (folder / file).exists():
                    os.replace(private / file, folder / file)
        log.info("Data source: %s", name)
        return name
    raise DataError(
        "Fashion-MNIST was not found. Tried:\n"
        + "".join(f"  {line}\n" for line in tried)
        + f"Put the four files into {folder}, or set {DATA_VARIABLE} to a folder that has them in "
        + f"FashionMNIST/raw;\nor install Debian's package {DEBIAN_PACKAGE}; "
        + "or let this machine reach the network."
    )


def _unpack(packed: Path, scratch: Path) -> None:
    """Decompress and verify a source's four files, before any of them is put in place."""
    for name in SHA256:
        archive = packed / f"{name}.gz"
        if not os.access(archive, os.R_OK):
            raise SourceError(f"has no readable {archive.name}")
        try:
            gunzip(archive, scratch / name)
            inspect(scratch / name, verify=True)
        except SourceError as error:
            raise SourceError(f"{archive.name} {error}") from None


def _find_installed(_: Path) -> Path:
    if not DEBIAN_FOLDER.is_dir():
        raise SourceError("not installed")
    return DEBIAN_FOLDER


def _download_torchvision(scratch: Path) -> Path:
    """Download from torchvision's mirrors, in child processes that can be killed if they hang."""
    try:
        from torchvision.datasets import FashionMNIST
    except (ImportError, OSError, RuntimeError) as error:
        raise SourceError(f"cannot import torchvision: {error}") from None

    failures = []
    for mirror in FashionMNIST.mirrors:
        first_file = mirror + FashionMNIST.resources[0][0]
        probe = [sys.executable, "-I", "-S", "-c", _PROBE, first_file, str(CONNECT_SECONDS)]
        download = [sys.executable, "-c", _DOWNLOAD, str(scratch), mirror, str(STALL_SECONDS)]
        try:
            run_silently(probe, seconds=2 * CONNECT_SECONDS)
            run_silently(download)
            return scratch / "FashionMNIST" / "raw"
        except SourceError as error:
            failures.append(f"{urlsplit(mirror).hostname}: {error}")
    raise SourceError("; ".join(failures))


def _download_apt(scratch: Path) -> Path:
    """Download and unpack Debian's package, without root and without installing anything."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SourceError("not a Debian or Ubuntu system")
    apt = ["apt-get", "-oAcquire::Retries=0", "-oAPT::Update::Error-Mode=any"]
    apt += [f"-oAcquire::{scheme}::Timeout={CONNECT_SECONDS}" for scheme in ("http", "https")]
    if os.geteuid() == 0:
        # As root, apt downloads as the user `_apt`, who cannot enter the temporary folder.
        apt.append("-oAPT::Sandbox::User=root")
    try:
        run_silently([*apt, "download", DEBIAN_PACKAGE], cwd=scratch)
    except SourceError as error:
        signs_of_old_lists = ("Unable to locate", "candidate", "find a source", "404")
        if not any(sign in str(error) for sign in signs_of_old_lists):
            raise
        for folder in ("lists/partial", "cache/archives/partial"):
            (scratch / folder).mkdir(parents=True)
        apt += [f"-oDir::State::Lists={scratch}/lists", f"-oDir::Cache={scratch}/cache"]
        try:
            run_silently([*apt, "update"], cwd=scratch)
            run_silently([*apt, "download", DEBIAN_PACKAGE], cwd=scratch)
        except SourceError as again:
            raise SourceError(f"{error}; needs `apt-get update`, which failed: {again}") from None
    packages = [str(path) for path in scratch.glob("*.deb")]
    run_silently(["dpkg-deb", "-x", *packages, str(scratch / "unpacked")])
    return scratch / "unpacked" / DEBIAN_FOLDER.relative_to("/")


def run_silently(command: list[str], cwd: Path | None = None, seconds: float | None = None) -> None:
    """Run a command silently.

    A command without a time limit of its own may take `FETCH_SECONDS` and, on Linux, ends with
    this process.

    Raises:
        SourceError: the command failed, with its own message, or took too long.
    """
    if seconds is None and sys.platform == "linux":
        tied_to_parent = [sys.executable, "-I", "-S", "-c", _TIE_TO_PARENT, str(os.getpid())]
        command = [*tied_to_parent, *command]
    seconds = seconds or FETCH_SECONDS
    # English messages, because they are searched; a short wait for a silent name server.
    environment = os.environ | {"LC_ALL": "C.UTF-8", "RES_OPTIONS": "timeout:2 attempts:2"}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise SourceError(f"no end after {seconds:g} s") from None
    except OSError as error:
        raise SourceError(str(error)) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        # apt's first line of errors has the cause; Python's traceback has it in the last line.
        message = next((line for line in lines if line.startswith("E: ")), lines[-1])
        raise SourceError(message.removeprefix("E: ")[:200])
