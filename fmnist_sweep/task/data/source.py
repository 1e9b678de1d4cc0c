"""Find, fetch and verify the four files of Fashion-MNIST; read one split of them."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fmnist_sweep.base.errors import DataError
from fmnist_sweep.task.config import DATA_VARIABLE, default_root
from fmnist_sweep.task.data.fetch import fetch
from fmnist_sweep.task.data.idx import (
    SHA256,
    SPLITS,
    SourceError,
    gunzip,
    inspect,
    read,
    sha256,
    shape_of,
)

_ADVICE = {
    True: "delete it to fetch it anew, or set data.verify=false for other data of the same shapes",
    False: "delete it to fetch it anew",
}


@dataclass(frozen=True)
class Files:
    """Checked files of the data set.

    folder: the folder that holds the files.
    origin: where the files came from, as text for the log.
    """

    folder: Path
    origin: str


def locate(
    root: str | os.PathLike[str] | None = None,
    verify: bool = True,
    splits: Sequence[str] = ("train", "test"),
) -> Files:
    """Make sure that checked files of the splits are in `<root>/FashionMNIST/raw`.

    The files are checked at every call. Hashing all four takes 0.04 s (with SHA instructions), too
    little to justify trusting the record of an earlier check. If a file is missing, all four are
    fetched from the first source that has them. A damaged file is reported, never replaced.

    Args:
        root: the folder with torchvision's layout below it; None for the environment variable
            FMNIST_SWEEP_DATA, or else `data`.
        verify: check the SHA-256; otherwise check that headers, sizes and labels fit together.
        splits: the splits to check, of "train" and "test". Files of other splits are opened only
            if files must be fetched.

    Returns:
        The folder of the files and where they came from.

    Raises:
        DataError: a file is damaged, the folder cannot be used, or no source has the files.
    """
    root = Path(root or default_root()).expanduser()
    folder = root / "FashionMNIST" / "raw"
    names = [name for split in splits for name in SPLITS[split]]
    origin = str(root)
    try:
        missing = [name for name in names if not _exists(folder, name)]
        if missing:
            _refuse_mixture(folder, missing[0], verify)
            origin = fetch(folder, f"{root}: no {missing[0]} in FashionMNIST/raw")
        for name in names:
            _check(folder, name, verify)
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or folder}"
        by_variable = str(root) == os.environ.get(DATA_VARIABLE)
        setting = DATA_VARIABLE if by_variable else "data.root"
        raise DataError(f"{setting}={root}: cannot be used: {reason}") from None
    files = Files(folder, origin)
    if not verify:
        for split in splits:
            _check_counts(files, split)
    return files


def load(
    files: Files, split: Literal["train", "test"]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Read one split; open no file of the other.

    Returns:
        The images, uint8 [n, 28, 28], and the labels, uint8 [n].

    Raises:
        DataError: a file's header does not fit its size or its name.
    """
    images, labels = (read(files.folder / name) for name in SPLITS[split])
    return images, labels


def _check_counts(files: Files, split: str) -> None:
    """Refuse a split that does not have as many labels as images."""
    images, labels = (files.folder / name for name in SPLITS[split])
    (n, *_), (m,) = shape_of(images), shape_of(labels)
    if n != m:
        raise DataError(f"{labels}: has {m:,} labels, {images.name} has {n:,} images")


def _exists(folder: Path, name: str) -> bool:
    return (folder / name).exists() or (folder / f"{name}.gz").exists()


def _check(folder: Path, name: str, verify: bool) -> None:
    """Check an existing file; if only its .gz exists, decompress and check that."""
    path = folder / name
    packed = folder / f"{name}.gz"
    if path.exists():
        try:
            inspect(path, verify)
        except SourceError as error:
            raise DataError(f"{path}: {error}; {_ADVICE[verify]}") from None
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as scratch:
        unpacked = Path(scratch) / name
        try:
            gunzip(packed, unpacked)
            inspect(unpacked, verify)
        except SourceError as error:
            raise DataError(f"{packed}: {error}; {_ADVICE[verify]}") from None
        os.replace(unpacked, path)


def _refuse_mixture(folder: Path, missing: str, verify: bool) -> None:
    """Refuse to fetch files into a folder that holds files of another data set.

    Genuine files are accepted although others are missing: another process may be adding the rest
    at this moment, or was ended while it did.
    """
    for name in SHA256:
        if _exists(folder, name):
            _check(folder, name, verify)
            if sha256(folder / name) != SHA256[name]:
                raise DataError(
                    f"{folder / name}: is not Fashion-MNIST's own, and {missing} is missing "
                    f"beside it; put that there, or delete what is there to fetch all four"
                )
