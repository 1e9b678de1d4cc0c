"""Finds, fetches and verifies the four files of Fashion-MNIST.

    python -m fmnist_sweep.data.source [--root DIR] [--no-verify]

prints where they are and whether they verify.
"""

import argparse
import gzip
import hashlib
import logging
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
SPLITS = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
VARIABLE = "FMNIST_SWEEP_DATA"
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
# No file of this data set, or of one of its shapes, needs more; a compressed file may claim it.
LARGEST = 64 * 2**20
CONNECT_SECONDS = 5  # for a host to answer at all: offline is known soon
STALL_SECONDS = 20  # without a byte
FETCH_SECONDS = 600  # for a whole download: 30 MB at 50 kB/s

_ADVICE = {
    True: "delete it to fetch it anew, or set data.verify=false for other data of the same shapes",
    False: "delete it to fetch it anew",
}
_ASK = """
import sys
from urllib.request import Request, urlopen
urlopen(Request(sys.argv[1], method="HEAD"), timeout=float(sys.argv[2]))
"""
# torchvision waits for ever on a silent host; the default timeout makes that a stall's length.
_DOWNLOAD = """
import socket, sys
from torchvision.datasets import FashionMNIST
socket.setdefaulttimeout(float(sys.argv[3]))
FashionMNIST.mirrors = [sys.argv[2]]
FashionMNIST(sys.argv[1], download=True)
"""


class DataError(Exception):
    """The data cannot be had or cannot be trusted; its message is what the user reads."""


class _Failure(Exception):
    """What is wrong with one file or one source, in words that follow its name."""


@dataclass(frozen=True)
class Files:
    """Good files in `folder`, and where they came from, in words."""

    folder: Path
    origin: str


def locate(
    root: str | os.PathLike[str] = "data",
    verify: bool = True,
    splits: Sequence[str] = ("train", "test"),
) -> Files:
    """Makes sure that good files of the splits lie in `<root>/FashionMNIST/raw`.

    They are checked at every call: hashing all four takes 0.04 s (SHA instructions), less than
    any note of an earlier check would save in trust. Where one is missing, all four are fetched
    from the first source that has them. A damaged file is reported, never replaced.

    Args:
        root: torchvision's layout below it; the variable FMNIST_SWEEP_DATA overrides it.
        verify: check SHA-256; otherwise that headers, sizes and labels fit together.
        splits: which to look at, of "train" and "test"; the others' files are not opened unless
            something is fetched beside them.

    Raises:
        DataError: a file is damaged, the folder cannot be used, or no source has the files.
    """
    chosen = os.environ.get(VARIABLE)
    root = Path(chosen or root).expanduser()
    folder = root / "FashionMNIST" / "raw"
    names = [name for split in splits for name in SPLITS[split]]
    origin = str(root)
    try:
        missing = [name for name in names if not _present(folder, name)]
        if missing:
            _refuse_mixture(folder, missing[0], verify)
            origin = _fetch(folder, f"{root}: no {missing[0]} in FashionMNIST/raw")
        for name in names:
            _settle(folder, name, verify)
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or folder}"
        setting = VARIABLE if chosen else "data.root"
        raise DataError(f"{setting}={root}: cannot be used: {reason}") from None
    files = Files(folder, origin)
    if not verify:
        for split in splits:
            _match(files, split)
    return files


def load(
    files: Files, split: Literal["train", "test"]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reads one split, and opens no file of the other.

    Returns:
        Images, uint8 [n, 28, 28], and labels, uint8 [n].

    Raises:
        DataError: a file's header does not fit its size or its name.
    """
    images, labels = (_read(files.folder / name) for name in SPLITS[split])
    return images, labels


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        shape = _shape(path)
        array = np.fromfile(path, dtype=np.uint8, offset=_header_size(len(shape)))
        if array.size != math.prod(shape):
            raise _Failure("changed while it was read")
    except (_Failure, OSError) as error:
        raise DataError(f"{path}: {error}") from None
    return array.reshape(shape)


def _header_size(rank: int) -> int:
    return 4 + 4 * rank


def _shape(path: Path) -> tuple[int, ...]:
    """The shape in an IDX file's header, which fits the file's name and size.

    The format: http://yann.lecun.com/exdb/mnist. Nothing is allocated on a header's word.
    """
    size = _size(path)
    rank = 3 if "images" in path.name else 1
    with open(path, "rb") as file:
        header = file.read(_header_size(rank))
    if len(header) < _header_size(rank):
        raise _Failure(f"is truncated: {size} bytes are too few for a header")
    if header[:4] != bytes([0, 0, 8, rank]):
        raise _Failure(f"is not an IDX file of bytes in {rank} dimension{'s' * (rank > 1)}")
    shape: tuple[int, ...] = struct.unpack(f">{rank}I", header[4:])
    if shape[1:] not in ((), (28, 28)):
        raise _Failure(f"holds images of {shape[1]} x {shape[2]} pixels, not 28 x 28")
    expected = len(header) + math.prod(shape)
    if size != expected:
        fault = "truncated" if size < expected else "too long"
        raise _Failure(f"is {fault}: {size:,} bytes, expected {expected:,}")
    if shape[0] == 0:
        raise _Failure("is empty")
    return shape


def _size(path: Path) -> int:
    size = path.stat().st_size
    # A pipe or a device has no size and no end.
    if not path.is_file():
        raise _Failure("is not a regular file")
    if size > LARGEST:
        raise _Failure(f"is too long: {size:,} bytes, more than any file of this data set has")
    return size


def _inspect(path: Path, verify: bool) -> None:
    """Raises _Failure unless the file holds what its name says."""
    _size(path)
    if verify:
        found = _sha256(path)
        if found == SHA256[path.name]:
            return
        for name, known in SHA256.items():
            if found == known:
                raise _Failure(f"holds the content of {name}")
    shape = _shape(path)
    if verify:
        raise _Failure("is altered: its SHA-256 differs from Fashion-MNIST's")
    if len(shape) == 1 and (label := _read(path).max()) > 9:
        raise _Failure(f"holds label {label}; labels must be 0 to 9")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _match(files: Files, split: str) -> None:
    """Raises DataError unless there are as many labels as images."""
    images, labels = (files.folder / name for name in SPLITS[split])
    (n, *_), (m,) = _shape(images), _shape(labels)
    if n != m:
        raise DataError(f"{labels}: has {m:,} labels, {images.name} has {n:,} images")


def _present(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / f"{name}.gz").exists()


def _settle(folder: Path, name: str, verify: bool) -> None:
    """Checks a file that is there; one that is there as .gz only is decompressed beside it."""
    path = folder / name
    packed = folder / f"{name}.gz"
    if path.exists():
        try:
            _inspect(path, verify)
        except _Failure as failure:
            raise DataError(f"{path}: {failure}; {_ADVICE[verify]}") from None
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as scratch:
        unpacked = Path(scratch) / name
        try:
            _gunzip(packed, unpacked)
            _inspect(unpacked, verify)
        except _Failure as failure:
            raise DataError(f"{packed}: {failure}; {_ADVICE[verify]}") from None
        os.replace(unpacked, path)


def _gunzip(packed: Path, target: Path) -> None:
    """Decompresses a file, to disk and no further than any honest file would reach."""
    size = 0
    try:
        with gzip.open(packed, "rb") as source, open(target, "wb") as file:
            while piece := source.read(2**20):
                size += len(piece)
                if size > LARGEST:
                    raise _Failure(f"unpacks to more than {LARGEST:,} bytes")
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _Failure(f"is damaged: {error}") from None


def _refuse_mixture(folder: Path, missing: str, verify: bool) -> None:
    """Fetched files are laid beside Fashion-MNIST's own only, never beside other data.

    Genuine files without their partners are no reason to stop: another process may be putting
    the rest there at this moment, or one was ended while it did.
    """
    for name in SHA256:
        if _present(folder, name):
            _settle(folder, name, verify)
            if _sha256(folder / name) != SHA256[name]:
                raise DataError(
                    f"{folder / name}: is not Fashion-MNIST's own, and {missing} is missing "
                    f"beside it; put that there, or delete what is there to fetch all four"
                )


def _fetch(folder: Path, reason: str) -> str:
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
            except _Failure as failure:
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
        + f"Put the four files into {folder}, or set {VARIABLE} to a folder that has them in "
        + f"FashionMNIST/raw;\nor install Debian's package {DEBIAN_PACKAGE}; "
        + "or let this machine reach the network."
    )


def _stage(packed: Path, scratch: Path) -> None:
    """Decompresses and verifies a source's four files, before any of them takes its place."""
    for name in SHA256:
        archive = packed / f"{name}.gz"
        if not os.access(archive, os.R_OK):
            raise _Failure(f"has no readable {archive.name}")
        try:
            _gunzip(archive, scratch / name)
            _inspect(scratch / name, verify=True)
        except _Failure as failure:
            raise _Failure(f"{archive.name} {failure}") from None


def _installed(_: Path) -> Path:
    if not DEBIAN_FOLDER.is_dir():
        raise _Failure("not installed")
    return DEBIAN_FOLDER


def _torchvision(scratch: Path) -> Path:
    """Downloads from torchvision's mirrors, in processes that can be ended when they hang."""
    try:
        from torchvision.datasets import FashionMNIST
    except (ImportError, OSError, RuntimeError) as error:
        raise _Failure(f"cannot import torchvision: {error}") from None

    failures = []
    for mirror in FashionMNIST.mirrors:
        probe = mirror + FashionMNIST.resources[0][0]
        ask = [sys.executable, "-I", "-S", "-c", _ASK, probe, str(CONNECT_SECONDS)]
        download = [sys.executable, "-c", _DOWNLOAD, str(scratch), mirror, str(STALL_SECONDS)]
        try:
            _run(ask, seconds=2 * CONNECT_SECONDS)
            _run(download)
            return scratch / "FashionMNIST" / "raw"
        except _Failure as failure:
            failures.append(f"{urlsplit(mirror).hostname}: {failure}")
    raise _Failure("; ".join(failures))


def _apt(scratch: Path) -> Path:
    """Downloads and unpacks Debian's package; needs no root and changes nothing on the system."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise _Failure("not a Debian or Ubuntu system")
    apt = ["apt-get", "-oAcquire::Retries=0", "-oAPT::Update::Error-Mode=any"]
    apt += [f"-oAcquire::{scheme}::Timeout={CONNECT_SECONDS}" for scheme in ("http", "https")]
    if os.geteuid() == 0:
        # Root's apt hands downloads to a user of its own, who cannot enter our folder.
        apt.append("-oAPT::Sandbox::User=root")
    try:
        _run([*apt, "download", DEBIAN_PACKAGE], cwd=scratch)
    except _Failure as failure:
        outdated = ("Unable to locate", "candidate", "find a source", "404")
        if not any(sign in str(failure) for sign in outdated):
            raise
        for folder in ("lists/partial", "cache/archives/partial"):
            (scratch / folder).mkdir(parents=True)
        apt += [f"-oDir::State::Lists={scratch}/lists", f"-oDir::Cache={scratch}/cache"]
        try:
            _run([*apt, "update"], cwd=scratch)
            _run([*apt, "download", DEBIAN_PACKAGE], cwd=scratch)
        except _Failure as again:
            raise _Failure(f"{failure}; needs `apt-get update`, which failed: {again}") from None
    packages = [str(path) for path in scratch.glob("*.deb")]
    _run(["dpkg-deb", "-x", *packages, str(scratch / "unpacked")])
    return scratch / "unpacked" / DEBIAN_FOLDER.relative_to("/")


def _run(command: list[str], cwd: Path | None = None, seconds: float | None = None) -> None:
    """Runs a command in silence; _Failure, with its own words, where it fails or is too slow."""
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
        raise _Failure(f"no end after {seconds:g} s") from None
    except OSError as error:
        raise _Failure(str(error)) from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        # apt begins with the cause and ends with advice; Python ends with the cause.
        words = next((line for line in lines if line.startswith("E: ")), lines[-1])
        raise _Failure(words.removeprefix("E: ")[:200])


def main(argv: Sequence[str] | None = None) -> None:
    """Prints where the data is and whether it verifies; exit code 1 where it does not."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", default="data", help="data.root (default: data)")
    parser.add_argument("--no-verify", action="store_true", help="as data.verify=false")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        files = locate(arguments.root, verify=not arguments.no_verify)
    except DataError as error:
        sys.exit(str(error))
    state = "header ok" if arguments.no_verify else "sha256 ok"
    for name in SHA256:
        path = files.folder / name
        print(f"{path}  {path.stat().st_size:>10,} bytes  {state}")
    print(f"Fashion-MNIST from {files.origin}: {'not ' * arguments.no_verify}verified")


if __name__ == "__main__":
    main()
