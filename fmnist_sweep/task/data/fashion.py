"""Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017) as a data set; its files are found by `source`."""

import hashlib
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from fmnist_sweep.engine.data import BYTES_TO_UNIT, DataFormat
from fmnist_sweep.task.config import DataConfig
from fmnist_sweep.task.data import source
from fmnist_sweep.task.data.dataset import Dataset, Part, PartName
from fmnist_sweep.task.data.idx import CLASS_NAMES, SPLITS, sha256

REQUIRED = ("root",)
FORMAT = DataFormat((1, 28, 28), len(CLASS_NAMES), BYTES_TO_UNIT)
TRAINING_IMAGES = 60_000  # as many of each class


def load(config: DataConfig, parts: Sequence[PartName]) -> Dataset:
    """Find, verify and read the parts; see `loaders.Loader`."""
    files = _files(config, parts)
    read: dict[PartName, Part] = {split: _part(files, split) for split in _splits(parts)}
    found = fingerprint([sha256(files.folder / name) for name in SPLITS["train"]])
    return Dataset(
        "Fashion-MNIST", files.origin, CLASS_NAMES, read, has_test=True, fingerprint=found
    )


def fingerprint(digests: Sequence[str]) -> str:
    """Return the fingerprint of training files with these SHA-256."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def stamp(config: DataConfig, parts: Sequence[PartName]) -> Hashable:
    """Return when the files were written, after checking them; see `loaders.Loader`."""
    files = _files(config, parts)
    # Only these files: another process's download may vanish from the folder at any moment.
    names = [name for split in _splits(parts) for name in SPLITS[split]]
    return files, tuple((files.folder / name).stat().st_mtime_ns for name in names)


def _splits(parts: Sequence[PartName]) -> tuple[Literal["train", "test"], ...]:
    return ("train", "test") if "test" in parts else ("train",)


def _files(config: DataConfig, parts: Sequence[PartName]) -> source.Files:
    assert config.root is not None
    return source.locate(config.root, verify=config.verify, splits=_splits(parts))


def _part(files: source.Files, split: Literal["train", "test"]) -> Part:
    pixels, labels = source.load(files, split)
    return Part(pixels[:, None], labels.astype(np.int64))
