"""NumPy arrays as a data set: an `.npz` file, or a folder of `.npy` files, memory-mapped."""

import math
import os
import zipfile
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from fmnist_sweep.base.errors import DataError, first_line
from fmnist_sweep.task.config import DataConfig
from fmnist_sweep.task.data.dataset import Dataset, PartName, from_arrays

REQUIRED = ("path",)
SUFFIXES: dict[PartName, str] = {"train": "train", "validation": "val", "test": "test"}


def load(config: DataConfig, parts: Sequence[PartName]) -> Dataset:
    """Read those of the arrays that the parts need; see `loaders.Loader`."""
    path = Path(str(config.path))
    names = [f"{letter}_{SUFFIXES[part]}" for part in parts for letter in "xy"]
    try:
        found = _names(path)
        wanted = [name for name in names if name in found]
        arrays = _read_folder(path, wanted) if path.is_dir() else _read_npz(path, wanted)
    except OSError as error:
        raise DataError(f"data.path={path}: {error.strerror or error}") from None
    inside = "/{}.npy" if path.is_dir() else ": {}"
    where = {name: f"{path}{inside.format(name)}" for name in names}
    has_test = {"x_test", "y_test"} <= found
    return from_arrays(path.stem, str(path), arrays, where, has_test)


def stamp(config: DataConfig, parts: Sequence[PartName]) -> Hashable:
    """Return when the files were written and their sizes; see `loaders.Loader`."""
    path = Path(str(config.path))
    try:
        files = sorted(path.glob("*.npy")) if path.is_dir() else [path]
        states = [file.stat() for file in files]
    except OSError as error:
        raise DataError(f"data.path={path}: {error.strerror or error}") from None
    return tuple((file, state.st_mtime_ns, state.st_size) for file, state in zip(files, states))


def _names(path: Path) -> set[str]:
    """Return the names of the arrays in a file or folder."""
    if path.is_dir():
        return {file.stem for file in path.glob("*.npy")}
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: is no .npz file: {first_line(error)}") from None


def _read_folder(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = {}
    for name in names:
        file = path / f"{name}.npy"
        try:
            with open(file, "rb") as opened:
                _check_header(opened, os.fstat(opened.fileno()).st_size)
            # Copied only where it is written to, which nobody does.
            arrays[name] = np.load(file, mmap_mode="c", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{file}: {first_line(error)}") from None
    return arrays


def _read_npz(path: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        for name in names:
            member = archive.getinfo(f"{name}.npy")
            try:
                with archive.open(member) as opened:
                    _check_header(opened, member.file_size)
                check_memory(member.file_size)
                with archive.open(member) as opened:
                    arrays[name] = np.lib.format.read_array(opened, allow_pickle=False)
            except (ValueError, EOFError, zipfile.BadZipFile) as error:
                raise DataError(f"{path}: {name}: {first_line(error)}") from None
    return arrays


def _check_header(file: IO[bytes], size: int) -> None:
    """Refuse an array whose header does not fit the file, before memory is allocated for it.

    Raises:
        ValueError: the file is not what its header says.
    """
    version = np.lib.format.read_magic(file)
    readers: dict[Any, Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"has version {version[0]}.{version[1]} of the .npy format")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("holds Python objects, which are never unpickled")
    expected = file.tell() + math.prod(shape) * dtype.itemsize
    if size != expected:
        fault = "is truncated" if size < expected else "is too long"
        raise ValueError(f"{fault}: {size:,} bytes, expected {expected:,}")


def check_memory(size: int) -> None:
    """Refuse an array that is larger than the machine's memory."""
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > memory:
            raise ValueError(
                f"takes {size / 1e9:.0f} GB, more than the memory of this machine; a folder of "
                ".npy files is memory-mapped instead"
            )
