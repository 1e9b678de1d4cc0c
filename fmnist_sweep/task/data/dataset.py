"""A data set as its loader returns it: checked arrays, before they are split and scaled."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fmnist_sweep.base.errors import DataError

PartName = Literal["train", "validation", "test"]
MAX_CLASSES = 1000
IMAGE_CHANNELS = (1, 3)

# Fits an encoding of rows on the training rows; what it returns maps rows to float32 [n, features].
Fit = Callable[[Any], Callable[[Any], np.ndarray]]


@dataclass(frozen=True, eq=False)
class Part:
    """The examples of one part.

    inputs: uint8 or float32 [n, *shape], images with their channels first; or the rows of a table.
    labels: int64 [n], 0 to the number of classes - 1.
    """

    inputs: Any
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set; two are equal only if they are the same object.

    name: its name in logs and pages.
    origin: where it came from, as text for the log.
    classes: the names of the classes, by label.
    parts: those that were asked for and are there; "train" always.
    has_test: whether it has a part for testing, opened or not.
    fingerprint: SHA-256 in hexadecimal of the training and validation examples.
    fit: how the rows of a table become numbers; None if the inputs are arrays.
    """

    name: str
    origin: str
    classes: tuple[str, ...]
    parts: Mapping[PartName, Part]
    has_test: bool
    fingerprint: str
    fit: Fit | None = None


def from_arrays(
    name: str, origin: str, arrays: Mapping[str, Any], where: Mapping[str, str], has_test: bool
) -> Dataset:
    """Check arrays and return the data set that they make.

    Args:
        name, origin: see `Dataset`.
        arrays: `x_train` and `y_train`, and possibly `x_val`, `y_val`, `x_test`, `y_test`. Inputs
            are images [n, height, width], with 1 or 3 channels first or last, or features
            [n, features]; labels are integers or text [n].
        where: the name of each array in errors, such as its file.
        has_test: see `Dataset`.

    Raises:
        DataError: the arrays are no data set; the message names the array.
    """
    names: dict[PartName, tuple[str, str]] = {
        "train": ("x_train", "y_train"),
        "validation": ("x_val", "y_val"),
        "test": ("x_test", "y_test"),
    }
    classes: tuple[str, ...] = ()
    parts: dict[PartName, Part] = {}
    for part, (x, y) in names.items():
        if x not in arrays and y not in arrays:
            if part == "train":
                raise DataError(f"{origin}: has no {x} and {y}")
            continue
        for wanted, other in ((x, y), (y, x)):
            if wanted not in arrays:
                raise DataError(f"{origin}: has {other} and no {wanted}")
        inputs = _inputs(np.asanyarray(arrays[x]), where[x])
        labels = _labels(np.asanyarray(arrays[y]), where[y])
        if len(inputs) != len(labels):
            raise DataError(
                f"{where[y]}: has {len(labels):,} labels, {where[x]} has {len(inputs):,} examples"
            )
        if part == "train":
            classes = class_names(labels, where[y])
        elif inputs.shape[1:] != parts["train"].inputs.shape[1:]:
            raise DataError(
                f"{where[x]}: has examples of shape {list(inputs.shape[1:])}, those for training "
                f"are {list(parts['train'].inputs.shape[1:])}"
            )
        elif inputs.dtype != parts["train"].inputs.dtype:
            raise DataError(
                f"{where[x]}: holds {inputs.dtype}, the examples for training are "
                f"{parts['train'].inputs.dtype}"
            )
        parts[part] = Part(inputs, encoded(labels, classes, where[y]))
    return Dataset(name, origin, classes, parts, has_test, fingerprint(parts))


def _inputs(values: np.ndarray, where: str) -> np.ndarray:
    """Return inputs as uint8 or float32, images with their channels first."""
    if values.dtype.kind not in "buif":
        raise DataError(f"{where}: holds {values.dtype}; inputs must be numbers")
    if values.ndim not in (2, 3, 4) or 0 in values.shape:
        raise DataError(
            f"{where}: has shape {list(values.shape)}; inputs are [n, features], "
            "[n, height, width] or images with 1 or 3 channels first or last"
        )
    if values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[1] not in IMAGE_CHANNELS:
        if values.shape[3] not in IMAGE_CHANNELS:
            raise DataError(
                f"{where}: has shape {list(values.shape)}; images must have 1 or 3 channels, first "
                "or last"
            )
        values = values.transpose(0, 3, 1, 2)
    if values.dtype == np.uint8 and values.ndim == 4:
        return values
    if values.dtype != np.float32:
        values = values.astype(np.float32)
    for start in range(0, len(values), 4096):  # a copy of all would take as much memory again
        finite = np.isfinite(values[start : start + 4096])
        if not finite.all():
            index = start + int(np.argwhere(~finite)[0][0])
            raise DataError(f"{where}: example {index} holds NaN or an infinite number")
    return values


def _labels(values: np.ndarray, where: str) -> np.ndarray:
    """Return labels as integers or text."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise DataError(f"{where}: has shape {list(values.shape)}; labels are [n]")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind in "biuU":
        return values
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == values.round()).all():
        return values.astype(np.int64)
    raise DataError(f"{where}: holds {values.dtype}; labels must be integers or text")


def class_names(labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Return the names of the classes, sorted: numbers by value, text by letters.

    Raises:
        DataError: there are fewer than two or more than `MAX_CLASSES`.
    """
    values = np.unique(labels)
    if len(values) < 2:
        raise DataError(f"{where}: holds a single class, {values[0]}; there must be two or more")
    if len(values) > MAX_CLASSES:
        raise DataError(
            f"{where}: holds {len(values):,} different labels; at most {MAX_CLASSES:,} classes can "
            "be trained"
        )
    return tuple(str(value) for value in values)


def encoded(labels: np.ndarray, classes: Sequence[str], where: str) -> np.ndarray:
    """Return labels as int64 positions in the list of classes.

    Raises:
        DataError: a label is none of the classes.
    """
    values, positions = np.unique(labels, return_inverse=True)
    number = {name: position for position, name in enumerate(classes)}
    unknown = [str(value) for value in values if str(value) not in number]
    if unknown:
        raise DataError(f"{where}: holds label {unknown[0]}, which no training example has")
    codes = np.array([number[str(value)] for value in values], dtype=np.int64)
    return codes[positions.ravel()]


def fingerprint(parts: Mapping[PartName, Part]) -> str:
    """Return the SHA-256 of the training and validation examples, with shapes and types."""
    digest = hashlib.sha256()
    for name in ("train", "validation"):
        if name in parts:
            for array in (parts[name].inputs, parts[name].labels):
                digest.update(f"{name} {array.dtype} {array.shape}".encode())
                for start in range(0, len(array), 4096):
                    digest.update(np.ascontiguousarray(array[start : start + 4096]).data)
    return digest.hexdigest()
