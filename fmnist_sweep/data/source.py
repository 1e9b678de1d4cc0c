"""Finds, fetches and verifies the four files of Fashion-MNIST.

    python -m fmnist_sweep.data.source [--root DIR] [--no-verify]

prints where they are and whether they verify.
"""

import argparse
import gzip
import hashlib
import logging
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

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
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")
# An IDX file is larger than this only if its header lies.
LARGEST = 64 * 2**20
CONNECT_SECONDS = 5
FETCH_SECONDS = 300


class DataError(Exception):
    """The data cannot be had or cannot be trusted; its message is what the user reads."""


class Unavailable(Exception):
    """One source has nothing to give; the next one is tried."""


@dataclass(frozen=True)
class Files:
    """Good files in `folder`, and where they came from, in words."""

    folder: Path
    origin: str


def locate(
    root: str | os.PathLike[str], verify: bool = True, splits: Iterable[str] = ("train", "test")
) -> Files:
    """Makes sure that good files of the splits lie in `<root>/FashionMNIST/raw`.

    Files that are there are checked (the hashes of all four take about 0.1 s); where any is
    missing, all four are taken from the first source that has them. A damaged file is reported,
    never replaced.

    Args:
        root: the environment variable FMNIST_SWEEP_DATA overrides it.
        verify: check SHA-256; otherwise headers and sizes only.
        splits: which to look at, of "train" and "test".

    Raises:
        DataError: a file is damaged, the folder cannot be written, or no source has the files.
    """
    root = Path(os.environ.get("FMNIST_SWEEP_DATA") or root)
    folder = root / "FashionMNIST" / "raw"
    names = [name for split in splits for name in SPLITS[split]]
    try:
        origin = str(root)
        if any(_present(folder, name) is None for name in names):
            origin = _fetch(folder)
        else:
            for name in names:
                _unpack(folder, name)
        for name in names:
            _check(folder / name, verify)
    except OSError as error:
        raise DataError(f"data.root={root}: {error.strerror}: {error.filename}") from None
    return Files(folder, origin)


def load(files: Files, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads a split: uint8 images [n, 28, 28] and uint8 labels [n] in 0..9."""
    images, labels = (files.folder / name for name in SPLITS[split])
    return read_idx(images), read_idx(labels)


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes (http://yann.lecun.com/exdb/mnist, "file format").

    Raises:
        DataError: the header is not that of images [n, 28, 28] or labels [n], or does not fit
            the file's size; nothing is allocated from a header's word alone.
    """
    size = path.stat().st_size
    if size > LARGEST:
        raise DataError(f"{path}: {size:,} bytes, more than any file of this data set has")
    data = path.read_bytes()
    rank = 3 if "idx3" in path.name else 1
    header = 4 + 4 * rank
    if len(data) < header or data[:4] != bytes([0, 0, 8, rank]):
        raise DataError(f"{path}: is not an IDX file of {rank} dimension(s) of bytes")
    shape = struct.unpack(f">{rank}I", data[4:header])
    if rank == 3 and shape[1:] != (28, 28):
        raise DataError(f"{path}: holds images of {shape[1]} x {shape[2]} pixels, not 28 x 28")
    expected = header + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise DataError(
            f"{path}: is {'truncated' if len(data) < expected else 'too long'}: "
            f"{len(data):,} bytes, {expected:,} by its header"
        )
    return np.frombuffer(bytearray(data), dtype=np.uint8, offset=header).reshape(shape)


def _check(path: Path, verify: bool) -> None:
    """Raises DataError unless the file is what its name says."""
    advice = "delete it to fetch it anew, or set data.verify=false to use other data"
    if verify:
        found = _sha256(path)
        if found == SHA256[path.name]:
            return
        other = next((name for name, known in SHA256.items() if known == found), None)
        if other:
            raise DataError(f"{path}: holds the content of {other}; {advice}")
        try:
            read_idx(path)
        except DataError as error:
            raise DataError(f"{error}; {advice}") from None
        raise DataError(f"{path}: is altered, its SHA-256 is not the data set's; {advice}")
    values = read_idx(path)
    if values.ndim == 1 and values.size and values.max() > 9:
        raise DataError(f"{path}: holds label {values.max()}; labels must be 0 to 9")
    images, labels = next(pair for pair in SPLITS.values() if path.name in pair)
    if path.name == labels and len(read_idx(path.with_name(images))) != len(values):
        raise DataError(f"{path}: has {len(values):,} labels, {images} another number of images")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _present(folder: Path, name: str) -> Path | None:
    """The file or its compressed form, if either is there."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)


def _unpack(folder: Path, name: str) -> None:
    """Decompresses `name.gz` beside itself unless `name` is there."""
    if not (folder / name).exists():
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as scratch:
            unpacked = Path(scratch) / name
            _gunzip(folder / f"{name}.gz", unpacked)
            os.replace(unpacked, folder / name)


def _gunzip(packed: Path, target: Path) -> None:
    """Decompresses a file, to disk and no further than any honest file would reach."""
    try:
        with gzip.open(packed, "rb") as source, open(target, "wb") as file:
            for _ in range(LARGEST // 2**20):
                piece = source.read(2**20)
                if not piece:
                    break
                file.write(piece)
            else:
                raise DataError(f"{packed}: unpacks to more than any file of this data set has")
            file.flush()
            os.fsync(file.fileno())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{packed}: is damaged: {error}; delete it to fetch it anew") from None


def _fetch(folder: Path) -> str:
    """Takes all four files from the first source that has them; returns its name."""
    tried = [f"{folder.parent.parent}: not all of the files are in FashionMNIST/raw"]
    log.info("Data source: %s", tried[0])
    folder.mkdir(parents=True, exist_ok=True)
    sources: list[tuple[str, Callable[[Path], Path]]] = [
        (f"Debian package {DEBIAN_PACKAGE}", _installed),
        ("torchvision's download", _torchvision),
        (f"apt-get download {DEBIAN_PACKAGE}", _apt),
    ]
    for name, take in sources:
        # A folder of its own: others that fetch at the same time do the same work and
        # put the same bytes in the same place.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch:
            try:
                taken = take(Path(scratch))
                for file in SHA256:
                    _place(taken, file, folder)
            except (Unavailable, DataError) as error:
                tried.append(f"{name}: {error}")
                log.info("Data source: %s", tried[-1])
                continue
        log.info("Data source: %s", name)
        return name
    raise DataError(
        "Fashion-MNIST cannot be found. Tried:\n"
        + "".join(f"  {line}\n" for line in tried)
        + f"Put the four files into {folder} (or name their place by FMNIST_SWEEP_DATA), "
        + f"or install Debian's {DEBIAN_PACKAGE}, or let this machine reach the network."
    )


def _place(taken: Path, name: str, folder: Path) -> None:
    """Moves one verified file from a source's folder to its place, whole."""
    if _present(taken, name) is None:
        raise Unavailable(f"has no {name}")
    if (folder / name).exists():
        return
    scratch = Path(tempfile.mkdtemp(dir=folder, prefix=".placing-"))
    try:
        if (taken / name).exists():
            shutil.copyfile(taken / name, scratch / name)
        else:
            _gunzip(taken / f"{name}.gz", scratch / name)
        _check(scratch / name, verify=True)
        os.replace(scratch / name, folder / name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _installed(_: Path) -> Path:
    folder = Path("/") / DEBIAN_FOLDER
    if not folder.is_dir():
        raise Unavailable("is not installed")
    return folder


def _torchvision(scratch: Path) -> Path:
    """Downloads by torchvision, in a process of its own that can be ended when it hangs."""
    from torchvision.datasets import FashionMNIST

    host = urlsplit(FashionMNIST.mirrors[0])
    if not _reachable(host.hostname or "", host.port or (443 if host.scheme == "https" else 80)):
        raise Unavailable(f"{host.hostname} does not answer")
    code = "import sys, torchvision; torchvision.datasets.FashionMNIST(sys.argv[1], download=True)"
    _run([sys.executable, "-c", code, str(scratch)])
    return scratch / "FashionMNIST" / "raw"


def _reachable(host: str, port: int) -> bool:
    """Whether a host accepts a connection within a few seconds, its name's look-up included."""
    code = f"import socket; socket.create_connection(({host!r}, {port}), {CONNECT_SECONDS})"
    try:
        command = [sys.executable, "-S", "-c", code]
        subprocess.run(command, check=True, capture_output=True, timeout=CONNECT_SECONDS)
        return True
    except (subprocess.SubprocessError, OSError, socket.gaierror):
        return False


def _apt(scratch: Path) -> Path:
    """Downloads and unpacks Debian's package without root, with package lists of its own."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Unavailable("is for Debian and Ubuntu")
    for folder in ("lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    own = [f"-oDir::State::Lists={scratch}/lists", f"-oDir::Cache={scratch}/cache"]
    patience = ["-oAcquire::Retries=0", f"-oAcquire::http::Timeout={CONNECT_SECONDS}"]
    # Where root runs apt, it would hand its downloads to a user who cannot enter our folder.
    sandbox = ["-oAPT::Sandbox::User=root"] if os.geteuid() == 0 else []
    try:
        _run(["apt-get", *patience, *sandbox, "download", DEBIAN_PACKAGE], cwd=scratch)
    except Unavailable:
        _run(["apt-get", *own, *patience, *sandbox, "update"], cwd=scratch)
        _run(["apt-get", *own, *patience, *sandbox, "download", DEBIAN_PACKAGE], cwd=scratch)
    package = next(scratch.glob("*.deb"))
    _run(["dpkg-deb", "-x", str(package), str(scratch / "unpacked")])
    return scratch / "unpacked" / DEBIAN_FOLDER


def _run(command: list[str], cwd: Path | None = None) -> None:
    """Runs a command quietly; Unavailable, with its last line, where it fails or takes too long."""
    try:
        subprocess.run(
            command, cwd=cwd, check=True, capture_output=True, text=True, timeout=FETCH_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} took more than {FETCH_SECONDS} s") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or [f"exit code {error.returncode}"]
        raise Unavailable(lines[-1]) from None
    except OSError as error:
        raise Unavailable(str(error)) from None


def main() -> None:
    """The command: where the data is and whether it verifies."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--root", default="data", help="data.root (default: data)")
    parser.add_argument("--no-verify", action="store_true", help="as data.verify=false")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        files = locate(arguments.root, verify=not arguments.no_verify)
    except DataError as error:
        sys.exit(str(error))
    state = "header checked" if arguments.no_verify else "verified"
    for name in SHA256:
        path = files.folder / name
        print(f"{path}  {path.stat().st_size:>10,} bytes  {state}")


if __name__ == "__main__":
    main()
