"""Data sets of torchvision, from files in its own layout or downloaded by it."""

import json
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fmnist_sweep.base.errors import DataError, first_line
from fmnist_sweep.task.config import DataConfig, default_root
from fmnist_sweep.task.data.dataset import Dataset, Part, PartName, fingerprint
from fmnist_sweep.task.data.fetch import STALL_SECONDS, run_silently
from fmnist_sweep.task.data.idx import SourceError

REQUIRED = ("root",)
_CLASSES = {
    "mnist": "MNIST",
    "kmnist": "KMNIST",
    "emnist": "EMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
# torchvision sets no timeout and would wait without end for a silent host.
_DOWNLOAD = """
import json, socket, sys
from torchvision import datasets
name, root, seconds, options = sys.argv[1:]
socket.setdefaulttimeout(float(seconds))
getattr(datasets, name)(root, download=True, **json.loads(options))
"""


def load(config: DataConfig, parts: Sequence[PartName]) -> Dataset:
    """Read the parts with torchvision, after a download if files are missing.

    torchvision checks MD5 sums of what it downloads, and at every start those of CIFAR, whose files
    are pickles.
    """
    name, root = _CLASSES[config.kind], _root(config)
    options: dict[str, Any] = {"split": config.split} if config.kind == "emnist" else {}
    try:
        train = _open(name, root, options, train=True)
        test = _open(name, root, options, train=False) if "test" in parts else None
    except SourceError as error:
        raise DataError(f"{name} was not found: {error}; put its files into {root}") from None
    except Exception as error:  # a damaged file
        raise DataError(f"{name} in {root}: {first_line(error)}") from None
    found: dict[PartName, Part] = {"train": _part(train, config)}
    if test is not None:
        found["test"] = _part(test, config)
    classes = [str(label) for label in train.classes]
    if config.kind == "emnist" and config.split == "letters":
        classes = classes[1:]  # labels begin with 1
    return Dataset(
        name, str(root), tuple(classes), found, has_test=True, fingerprint=fingerprint(found)
    )


def _open(name: str, root: Path, options: dict[str, Any], train: bool) -> Any:
    """Return torchvision's data set.

    Raises:
        SourceError: its files are missing and cannot be downloaded.
    """
    from torchvision import datasets

    cls = getattr(datasets, name)
    try:
        return cls(root, train=train, **options)
    except RuntimeError as error:
        reason = first_line(error)
    command = [sys.executable, "-c", _DOWNLOAD, name, str(root), str(STALL_SECONDS)]
    try:
        run_silently([*command, json.dumps(options)])
    except SourceError as error:
        raise SourceError(f"{reason} Its download failed: {error}") from None
    return cls(root, train=train, **options)


def _root(config: DataConfig) -> Path:
    return Path(config.root or default_root()).expanduser()


def _part(opened: Any, config: DataConfig) -> Part:
    images, labels = np.asarray(opened.data), np.asarray(opened.targets, dtype=np.int64)
    images = images.transpose(0, 3, 1, 2) if images.ndim == 4 else images[:, None]
    if config.kind == "emnist":
        images = images.swapaxes(2, 3)  # its files hold the images mirrored at the diagonal
        labels = labels - (config.split == "letters")
    return Part(np.ascontiguousarray(images), labels)


def stamp(config: DataConfig, parts: Sequence[PartName]) -> Hashable:
    """Return when the files were written; see `loaders.Loader`."""
    folder = _root(config)
    names = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
    inside = folder / names.get(config.kind, f"{_CLASSES[config.kind]}/raw")
    return tuple((file, file.stat().st_mtime_ns) for file in sorted(inside.glob("*")))
