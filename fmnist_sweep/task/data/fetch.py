"""Where the data set comes from when it is not here: Debian's package, torchvision, apt."""

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
from fmnist_sweep.task.data.idx import SHA256, Failure, gunzip, inspect

log = logging.getLogger(__name__)

DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CONNECT_SECONDS = 5  # for a host to answer at all: offline is known soon
STALL_SECONDS = 20  # without a byte
FETCH_SECONDS = 600  # for a whole download: 30 MB at 50 kB/s


_ASK = """
import sys
from urllib.request import TrainingJob, urlopen
urlopen(TrainingJob(sys.argv[1], method="HEAD"), timeout=float(sys.argv[2]))
"""
# torchvision waits for ever on a silent host; the default timeout makes that a stall's length.
_DOWNLOAD = """
import socket, sys
from torchvision.datasets import FashionMNIST
socket.setdefaulttimeout(float(sys.argv[3]))
FashionMNIST.mirrors = [sys.argv[2]]
FashionMNIST(sys.argv[1], download=True)
"""
# A command that Linux kills when the thread that waits for it is gone, however it went.
_TOGETHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def fetch(folder: Path, reason: str) -> str:
    """Takes all four files from the first source that has them; returns its name."""
    log.info("Data source: %s; fetching", reason)
    tried = [reason]
    folder.mkdir(parents=True, exist_ok=True)
    sources: tuple[tuple[str, Callable[[Path], Path]], ...] = (
        (f"Debian package {DEBIAN_PACKAGE}", _installed),
        ("torchvision download", _torchvision),
        (f"apt-get download {DEBIAN_PACKAGE}", _apt),
    )
    for name, take in sources:
        # A folder of its own: others that fetch at the same time do the same work, and each
        # puts the same bytes in the same place. What a killed download still writes into it
        # is no reason to fail.
        with tempfile.TemporaryDirectory(
            dir=folder, prefix=".fetching-", ignore_cleanup_errors=True
        ) as scratch:
            # apt takes a relative path for one below its own folders.
            private = Path(scratch).resolve()
            try:
                _stage(take(private), private)
            except Failure as failure:
                tried.append(f"{name}: {failure}")
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


def _stage(packed: Path, scratch: Path) -> None:
    """Decompresses and verifies a source's four files, before any of them takes its place."""
    for name in SHA256:
        archive = packed / f"{name}.gz"
        if not os.access(archive, os.R_OK):
            raise Failure(f"has no readable {archive.name}")
        try:
            gunzip(archive, scratch / name)
            inspect(scratch / name, verify=True)
        except Failure as failure:
            raise Failure(f"{archive.name} {failure}") from None


def _installed(_: Path) -> Path:
    if not DEBIAN_FOLDER.is_dir():
        raise Failure("not installed")
    return DEBIAN_FOLDER


def _torchvision(scratch: Path) -> Path:
    """Downloads from torchvision's mirrors, in processes that can be ended when they hang."""
    try:
        from torchvision.datasets import FashionMNIST
    except (ImportError, OSError, RuntimeError) as error:
        raise Failure(f"cannot import torchvision: {error}") from None

    failures = []
    for mirror in FashionMNIST.mirrors:
        probe = mirror + FashionMNIST.resources[0][0]
        ask = [sys.executable, "-I", "-S", "-c", _ASK, probe, str(CONNECT_SECONDS)]
        download = [sys.executable, "-c", _DOWNLOAD, str(scratch), mirror, str(STALL_SECONDS)]
        try:
            _run(ask, seconds=2 * CONNECT_SECONDS)
            _run(download)
            return scratch / "FashionMNIST" / "raw"
        except Failure as failure:
            failures.append(f"{urlsplit(mirror).hostname}: {failure}")
    raise Failure("; ".join(failures))


def _apt(scratch: Path) -> Path:
    """Downloads and unpacks Debian's package; needs no root and changes nothing on the system."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Failure("not a Debian or Ubuntu system")
    apt = ["apt-get", "-oAcquire::Retries=0", "-oAPT::Update::Error-Mode=any"]
    apt += [f"-oAcquire::{scheme}::Timeout={CONNECT_SECONDS}" for scheme in ("http", "https")]
    if os.geteuid() == 0:
        # Root's apt hands downloads to a user of its own, who cannot enter our folder.
        apt.append("-oAPT::Sandbox::User=root")
    try:
        _run([*apt, "download", DEBIAN_PACKAGE], cwd=scratch)
    except Failure as failure:
        outdated = ("Unable to locate", "candidate", "find a source", "404")
        if not any(sign in str(failure) for sign in outdated):
            raise
        for folder in ("lists/partial", "cache/archives/partial"):
            (scratch / folder).mkdir(parents=True)
        apt += [f"-oDir::State::Lists={scratch}/lists", f"-oDir::Cache={scratch}/cache"]
        try:
            _run([*apt, "update"], cwd=scratch)
            _run([*apt, "download", DEBIAN_PACKAGE], cwd=scratch)
        except Failure as again:
            raise Failure(f"{failure}; needs `apt-get update`, which failed: {again}") from None
    packages = [str(path) for path in scratch.glob("*.deb")]
    _run(["dpkg-deb", "-x", *packages, str(scratch / "unpacked")])
    return scratch / "unpacked" / DEBIAN_FOLDER.relative_to("/")


def _run(command: list[str], cwd: Path | None = None, seconds: float | None = None) -> None:
    """Runs a command in silence; Failure, with its own words, where it fails or is too slow."""
    if seconds is None and sys.platform == "linux":  # what is short ends soon anyway
        together = [sys.executable, "-I", "-S", "-c", _TOGETHER, str(os.getpid())]
        command = [*together, *command]
    seconds = seconds or FETCH_SECONDS
    # English, since we read it; and a name server that is silent is soon given up.
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
        raise Failure(f"no end after {seconds:g} s") from None
    except OSError as error:
        raise Failure(str(error)) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        # apt begins with the cause and ends with advice; Python ends with the cause.
        words = next((line for line in lines if line.startswith("E: ")), lines[-1])
        raise Failure(words.removeprefix("E: ")[:200])
