"""Finds, fetches and verifies the four files of Fashion-MNIST.

    python -m fmnist_sweep.task.data.source [--root DIR] [--no-verify]

prints where they are and whether they verify.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fmnist_sweep.base.errors import DataError
from fmnist_sweep.task.config import DATA_VARIABLE
from fmnist_sweep.task.data.fetch import fetch
from fmnist_sweep.task.data.idx import (
    SHA256,
    SPLITS,
    Failure,
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
    chosen = os.environ.get(DATA_VARIABLE)
    root = Path(chosen or root).expanduser()
    folder = root / "FashionMNIST" / "raw"
    names = [name for split in splits for name in SPLITS[split]]
    origin = str(root)
    try:
        missing = [name for name in names if not _present(folder, name)]
        if missing:
            _refuse_mixture(folder, missing[0], verify)
            origin = fetch(folder, f"{root}: no {missing[0]} in FashionMNIST/raw")
        for name in names:
            _settle(folder, name, verify)
    except OSError as error:
        reason = f"{error.strerror or error}: {error.filename or folder}"
        setting = DATA_VARIABLE if chosen else "data.root"
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
    images, labels = (read(files.folder / name) for name in SPLITS[split])
    return images, labels


def _match(files: Files, split: str) -> None:
    """Raises DataError unless there are as many labels as images."""
    images, labels = (files.folder / name for name in SPLITS[split])
    (n, *_), (m,) = shape_of(images), shape_of(labels)
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
            inspect(path, verify)
        except Failure as failure:
            raise DataError(f"{path}: {failure}; {_ADVICE[verify]}") from None
        return
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as scratch:
        unpacked = Path(scratch) / name
        try:
            gunzip(packed, unpacked)
            inspect(unpacked, verify)
        except Failure as failure:
            raise DataError(f"{packed}: {failure}; {_ADVICE[verify]}") from None
        os.replace(unpacked, path)


def _refuse_mixture(folder: Path, missing: str, verify: bool) -> None:
    """Fetched files are laid beside Fashion-MNIST's own only, never beside other data.

    Genuine files without their partners are no reason to stop: another process may be putting
    the rest there at this moment, or one was ended while it did.
    """
    for name in SHA256:
        if _present(folder, name):
            _settle(folder, name, verify)
            if sha256(folder / name) != SHA256[name]:
                raise DataError(
                    f"{folder / name}: is not Fashion-MNIST's own, and {missing} is missing "
                    f"beside it; put that there, or delete what is there to fetch all four"
                )
