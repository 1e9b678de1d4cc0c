"""The four IDX files of Fashion-MNIST: their names, their SHA-256, reading and checking them."""

import functools
import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmnist_sweep.base.errors import DataError

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
# Bytes. No file of this data set, or of another of the same shapes, is larger; a damaged compressed
# file may claim to be.
LARGEST = 64 * 2**20

# By label.
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


class SourceError(Exception):
    """A file or a source cannot be used; the message continues a sentence that its name begins."""


def read(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file.

    Returns:
        uint8 [n, 28, 28] of a file of images, uint8 [n] of a file of labels.

    Raises:
        DataError: the file cannot be read, or its header does not fit its size or its name.
    """
    try:
        shape = shape_of(path)
        array = np.fromfile(path, dtype=np.uint8, offset=_header_size(len(shape)))
        if array.size != math.prod(shape):
            raise SourceError("changed while it was read")
    except (SourceError, OSError) as error:
        raise DataError(f"{path}: {error}") from None
    return array.reshape(shape)


def _header_size(rank: int) -> int:
    return 4 + 4 * rank


def shape_of(path: Path) -> tuple[int, ...]:
    """Return the shape in an IDX file's header, after checking it against the file's name and size.

    The format is described at http://yann.lecun.com/exdb/mnist. No memory is allocated for a size
    that only the header claims.

    Returns:
        (n, 28, 28) of a file of images, (n,) of a file of labels.

    Raises:
        SourceError: the file is not what its name says.
    """
    size = _size(path)
    rank = 3 if "images" in path.name else 1
    with open(path, "rb") as file:
        header = file.read(_header_size(rank))
    if len(header) < _header_size(rank):
        raise SourceError(f"is truncated: {size} bytes are too few for a header")
    if header[:4] != bytes([0, 0, 8, rank]):
        raise SourceError(f"is not an IDX file of bytes in {rank} dimension{'s' * (rank > 1)}")
    shape: tuple[int, ...] = struct.unpack(f">{rank}I", header[4:])
    if shape[1:] not in ((), (28, 28)):
        raise SourceError(f"holds images of {shape[1]} x {shape[2]} pixels, not 28 x 28")
    expected = len(header) + math.prod(shape)
    if size != expected:
        fault = "truncated" if size < expected else "too long"
        raise SourceError(f"is {fault}: {size:,} bytes, expected {expected:,}")
    if shape[0] == 0:
        raise SourceError("is empty")
    return shape


def _size(path: Path) -> int:
    size = path.stat().st_size
    # Reading a pipe or a device may never end.
    if not path.is_file():
        raise SourceError("is not a regular file")
    if size > LARGEST:
        raise SourceError(f"is too long: {size:,} bytes, more than any file of this data set has")
    return size


def inspect(path: Path, verify: bool) -> None:
    """Refuse a file that does not hold what its name says.

    Args:
        path: the file, under its name in the data set.
        verify: check the SHA-256; otherwise check that header, size and labels fit together.

    Raises:
        SourceError: the file is not what its name says.
    """
    _size(path)
    if verify:
        found = sha256(path)
        if found == SHA256[path.name]:
            return
        for name, known in SHA256.items():
            if found == known:
                raise SourceError(f"holds the content of {name}")
    shape = shape_of(path)
    if verify:
        raise SourceError("is altered: its SHA-256 differs from Fashion-MNIST's")
    if len(shape) == 1 and (label := read(path).max()) > 9:
        raise SourceError(f"holds label {label}; labels must be 0 to 9")


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal; a file that has not changed is read once."""
    status = path.stat()
    return _sha256(path, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, *_: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def gunzip(packed: Path, target: Path) -> None:
    """Decompress a file to disk, but no more than `LARGEST` bytes.

    Raises:
        SourceError: the file is damaged or its content is too long.
    """
    size = 0
    try:
        with gzip.open(packed, "rb") as source, open(target, "wb") as file:
            while piece := source.read(2**20):
                size += len(piece)
                if size > LARGEST:
                    raise SourceError(f"unpacks to more than {LARGEST:,} bytes")
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"is damaged: {error}") from None
