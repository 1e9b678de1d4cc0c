"""Split a data set, scale it and move it to the device."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.engine.data import (
    BYTES_TO_UNIT,
    UNSCALED,
    DataFormat,
    DataSplits,
    Examples,
    Scaling,
)
from fmnist_sweep.task.config import DataConfig
from fmnist_sweep.task.data import fashion, loaders
from fmnist_sweep.task.data.dataset import Dataset, Part, PartName
from fmnist_sweep.task.data.idx import CLASS_NAMES

log = logging.getLogger(__name__)

PIECE = 1024  # images that are read at a time
EXAMPLES_SHARE = 0.5  # of a GPU's free memory that examples may take


@dataclass(frozen=True)
class Description:
    """The format of a trial's data and the number of its training examples.

    format: shape, classes and scaling.
    training: the number of training examples.
    """

    format: DataFormat
    training: int


def describe(config: DataConfig) -> Description:
    """Return the format of the data and the number of training examples, after checking the sizes.

    No file of Fashion-MNIST is opened. Other data sets are loaded, once for all trials.

    Raises:
        DataError: the data set is missing or damaged.
        ConfigError: it is smaller than the sizes asked for, or has no such class.
    """
    if config.kind == "fashion_mnist":
        _check_batch_size(config, fashion.TRAINING_IMAGES)
        training = _fashion_training_examples(config.model_copy(update={"batch_size": 1}))
        return Description(fashion.FORMAT, training)
    data = load(config, torch.device("cpu"), test=False)
    return Description(data.format, len(data.train))


@functools.lru_cache(maxsize=16)
def _fashion_training_examples(config: DataConfig) -> int:
    each = fashion.TRAINING_IMAGES // fashion.FORMAT.classes
    labels = np.repeat(np.arange(fashion.FORMAT.classes), each)
    return len(_split(labels, CLASS_NAMES, config, has_validation=False).train)


def load(config: DataConfig, device: torch.device, test: bool) -> DataSplits:
    """Load, verify and split the data, move it to the device, and log one line about it.

    Args:
        config: the section `data`.
        device: the device to move the examples to.
        test: return the test examples, if there are any. With `data.validation=test` they are read
            anyway.

    Raises:
        DataError: the data set is missing or damaged.
        ConfigError: the data set is smaller than the sizes asked for, or has no such class.
    """
    dataset = loaders.load(config, _parts(config, test))
    if config.validation == "test" and not dataset.has_test:
        raise ConfigError(f"data.validation=test: {dataset.origin} has no part for testing")
    _check_batch_size(config, len(dataset.parts["train"]))
    # The split does not depend on the batch size: trials with different sizes share a copy.
    key = config.model_copy(update={"batch_size": 1, "arguments": None})
    data = _split_and_move(dataset, key, device)
    log.info(
        "Data: %s training, %s validation%s %s%s from %s",
        f"{len(data.train):,}",
        f"{len(data.validation):,}",
        f", {len(data.test):,} test" if test and data.test is not None else "",
        "images" if data.format.is_image else "examples",
        f" of classes {', '.join(map(str, config.classes))}" if config.classes else "",
        dataset.origin,
    )
    if test and data.test is None:
        log.info("There is no part for testing; the figures are those of the validation examples")
    if config.validation == "test":
        log.warning(
            "data.validation=test: the validation figures are those of the test part; "
            "what is selected on them says nothing about new examples"
        )
    if config.validation == "train":
        log.warning(
            "data.validation=train: nothing is held out; the validation figures are of examples "
            "that are trained on"
        )
    return data if test else replace(data, test=None)


def load_test(config: DataConfig) -> tuple[Examples, DataFormat, tuple[str, ...]]:
    """Return the test examples on the CPU, the format of the data and the names of the classes."""
    data = load(config, torch.device("cpu"), test=True)
    assert data.test is not None
    return data.test, data.format, tuple(data.about["classes"])


def has_test(config: DataConfig) -> bool:
    """Return whether the data set has a part for testing, without opening it."""
    return loaders.load(config, _parts(config, test=False)).has_test


def _parts(config: DataConfig, test: bool) -> tuple[PartName, ...]:
    opened = test or config.validation == "test"
    return ("train", "validation", "test") if opened else ("train", "validation")


@functools.lru_cache(maxsize=1)
def _split_and_move(dataset: Dataset, config: DataConfig, device: torch.device) -> DataSplits:
    """Return the parts on the device. All trials of a sweep share one copy."""
    parts = dataset.parts
    whole, own, test = parts["train"], parts.get("validation"), parts.get("test")
    split = _split(whole.labels, dataset.classes, config, has_validation=own is not None)
    chosen: dict[PartName, _Chosen] = {"train": _Chosen(whole, split.train)}
    if own is not None and config.validation == "held_out":
        chosen["validation"] = _Chosen(own, _of_classes_in(own, split, config))
    elif config.validation != "test":
        chosen["validation"] = _Chosen(whole, split.validation)
    if test is not None:
        chosen["test"] = _Chosen(test, _of_classes_in(test, split, config))
    train = chosen["train"]
    scaling, limits = UNSCALED, (0.0, 0.0)
    encode: Any = None
    if dataset.fit:
        encode = dataset.fit(train.inputs())
    elif train.part.inputs.ndim == 2:
        encode = _feature_scaling(train.inputs(), config.normalise)
    else:
        scaling, limits = image_scaling(train.part.inputs, config.normalise, train.rows)
    streamed = not _fit(chosen.values(), device)
    moved = {name: one.moved(device, encode, streamed) for name, one in chosen.items()}
    shape = tuple(moved["train"].inputs.shape[1:])
    form = DataFormat(shape, len(dataset.classes), scaling, limits)
    about = {
        "name": dataset.name,
        "shape": list(shape),
        "classes": list(dataset.classes),
        "fingerprint": dataset.fingerprint,
        "own_validation": own is not None,
    }
    if config.validation == "test":
        moved["validation"] = moved["test"]
    return DataSplits(moved["train"], moved["validation"], moved.get("test"), form, about, device)


def _of_classes_in(part: Part, split: "_Split", config: DataConfig) -> np.ndarray:
    return _of_classes(part.labels, np.arange(len(part)), split.classes, config)


@dataclass(frozen=True)
class _Chosen:
    """Some examples of a part, by their indices."""

    part: Part
    rows: np.ndarray

    def inputs(self) -> Any:
        """Return the inputs, copied."""
        every = self.part.inputs
        return every.iloc[self.rows] if hasattr(every, "iloc") else every[self.rows]

    def moved(
        self, device: torch.device, encode: Callable[[Any], np.ndarray] | None, streamed: bool
    ) -> Examples:
        """Return the examples, encoded if `encode` is given.

        Args:
            device: the device of the training.
            encode: returns the encoded inputs.
            streamed: leave the examples on the host.
        """
        device = torch.device("cpu") if streamed else device
        inputs, labels = self.part.inputs, torch.from_numpy(self.part.labels)
        if encode is None and isinstance(inputs, np.memmap) and device.type == "cpu":
            # Not copied: the file may be larger than the memory.
            rows = torch.from_numpy(self.rows)
            return Examples(torch.from_numpy(inputs), labels, rows, streamed, inputs)
        chosen = np.ascontiguousarray(encode(self.inputs()) if encode else self.inputs())
        moved = torch.from_numpy(chosen).to(device)
        return Examples(moved, labels[self.rows].to(device), streamed=streamed)


def _fit(chosen: Iterable[_Chosen], device: torch.device) -> bool:
    """Return whether the examples fit into the device's memory, beside the training."""
    if device.type != "cuda":
        return True
    needed = sum(
        len(one.rows) * one.part.inputs[:1].nbytes
        for one in chosen
        if isinstance(one.part.inputs, np.ndarray)  # a table is small
    )
    free, _ = torch.cuda.mem_get_info(device)
    if needed <= EXAMPLES_SHARE * free:
        return True
    log.info(
        "The examples take %.1f GiB, and the device has %.1f GiB free: they stay on the host",
        needed / 2**30,
        free / 2**30,
    )
    return False


@dataclass(frozen=True)
class _Split:
    """Indices of examples, and the labels that are trained, None for all."""

    train: np.ndarray
    validation: np.ndarray
    classes: np.ndarray | None


def _split(
    labels: np.ndarray, names: Sequence[str], config: DataConfig, has_validation: bool
) -> _Split:
    """Split the training part.

    The examples to hold out are chosen among all classes, so that `data.classes` only removes
    examples from each part.

    Raises:
        ConfigError: there are fewer examples than asked for, or no such class.
    """
    every = np.arange(len(labels))
    classes = _labels_of(config, names)
    val_size = _val_size(config, len(labels))
    if config.validation == "held_out" and not has_validation:
        held_out, left = stratified(labels, every, val_size, config.split_seed)
        held_out = _of_classes(labels, held_out, classes, config)
    else:
        held_out, left = every[:0], every
    left = _of_classes(labels, left, classes, config)
    if config.train_size is not None:
        if config.train_size > len(left):
            of_classes = len(_of_classes(labels, every, classes, config))
            which = f" of data.classes={list(config.classes)}" if config.classes else ""
            raise ConfigError(
                f"data.train_size={config.train_size}: must be at most {len(left)}, what "
                f"data.val_size={config.val_size} leaves of {of_classes} training examples{which}"
            )
        left, _ = stratified(labels, left, config.train_size, config.split_seed)
    if config.validation == "train":
        held_out, _ = stratified(labels, left, min(val_size, len(left)), config.split_seed)
    return _Split(left, held_out, classes)


def _val_size(config: DataConfig, available: int) -> int:
    """Return the number of examples to hold out."""
    size = config.val_size
    if isinstance(size, float):
        return max(1, round(size * available))
    if config.validation == "held_out" and size >= available:
        raise ConfigError(f"data.val_size={size}: must be less than {available}, all that there is")
    return size


def _check_batch_size(config: DataConfig, available: int) -> None:
    if config.batch_size > available:
        raise ConfigError(
            f"data.batch_size={config.batch_size}: must be at most {available}, the number of "
            "training examples"
        )


def _labels_of(config: DataConfig, names: Sequence[str]) -> np.ndarray | None:
    """Return the labels of `data.classes`: names, or else numbers of classes."""
    if config.classes is None:
        return None
    found = []
    for one in config.classes:
        if str(one) in names:
            found.append(names.index(str(one)))
        elif isinstance(one, int) and 0 <= one < len(names):
            found.append(one)
        else:
            shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
            raise ConfigError(
                f"data.classes={list(config.classes)}: must be a list of two or more different "
                f"classes of 0 to {len(names) - 1} or of {shown}"
            )
    return np.array(sorted(found))


def _of_classes(
    labels: np.ndarray, candidates: np.ndarray, classes: np.ndarray | None, config: DataConfig
) -> np.ndarray:
    """Return those candidates, indices into `labels`, whose label is one of the classes."""
    if classes is None:
        return candidates
    missing = set(classes.tolist()) - set(labels[candidates].tolist())
    if missing:
        raise ConfigError(
            f"data.classes={list(config.classes or ())}: no example is of class {min(missing)}"
        )
    return candidates[np.isin(labels[candidates], classes)]


def stratified(
    labels: np.ndarray, candidates: np.ndarray, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `size` of the candidates at random, the same share of every class.

    Args:
        labels: integers [n], the class of every example.
        candidates: int64 [m], indices into `labels`, ascending.
        size: the number of examples to draw, 1 <= size <= m.
        seed: the seed of the draw.

    Returns:
        The indices drawn and those left, each int64, ascending. Shares are rounded by largest
        remainder, so that exactly `size` are drawn.

    Raises:
        ConfigError: there are fewer than `size` candidates.
    """
    if size > len(candidates):
        raise ConfigError(
            f"data.val_size and data.train_size ask for {size:,} examples of {len(candidates):,}"
        )
    generator = np.random.default_rng(np.random.SeedSequence([seed, 0x5EED]))
    classes, counts = np.unique(labels[candidates], return_counts=True)
    shares = counts * size / len(candidates)
    quota = np.floor(shares).astype(int)
    short = size - quota.sum()
    quota[np.argsort(quota - shares, kind="stable")[:short]] += 1
    taken = np.concatenate(
        [
            generator.permutation(candidates[labels[candidates] == cls])[:n]
            for cls, n in zip(classes, quota)
        ]
    )
    taken.sort()
    return taken, np.setdiff1d(candidates, taken, assume_unique=True)


def _feature_scaling(train: np.ndarray, normalise: str) -> Any:
    """Return a function that scales features [n, F], fitted on the training examples."""
    values = train.astype(np.float64)
    if normalise == "standardise":
        centre, reach = values.mean(axis=0), values.std(axis=0)
    elif normalise == "minmax":
        low, high = values.min(axis=0), values.max(axis=0)
        centre, reach = (low + high) / 2, (high - low) / 2
    else:
        return lambda inputs: inputs
    reach = np.where(reach > 0, reach, 1.0)  # of a feature that never changes
    return lambda inputs: ((inputs - centre) / reach).astype(np.float32)


def image_scaling(
    images: np.ndarray, normalise: str, rows: np.ndarray | None = None
) -> tuple[Scaling, tuple[float, float]]:
    """Return the scaling of images, and their smallest and largest stored value.

    Args:
        images: uint8 or float32 [n, channels, height, width].
        normalise: `minmax` to [-1, 1], for bytes from 0 to 255; `standardise` to mean 0 and
            standard deviation 1 in each channel; `none`.
        rows: the training images among them; None for all.
    """
    rows = np.arange(len(images)) if rows is None else rows
    is_bytes = images.dtype == np.uint8
    low, high = (0.0, 255.0) if is_bytes else _range(images, rows)
    if normalise == "none":
        return UNSCALED, (low, high)
    if normalise == "minmax":
        if is_bytes:
            return BYTES_TO_UNIT, (low, high)
        factor = 2 / (high - low) if high > low else 1.0
        return Scaling((factor,), (-1 - low * factor,)), (low, high)
    means, deviations = _moments(images, rows)
    factors = tuple(1 / deviation if deviation > 0 else 1.0 for deviation in deviations)
    offsets = tuple(-mean * factor for mean, factor in zip(means, factors))
    return Scaling(factors, offsets), (low, high)


def _pieces(images: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a few images at a time: all of them may not fit into memory."""
    for start in range(0, len(rows), PIECE):
        yield images[rows[start : start + PIECE]]


def _range(images: np.ndarray, rows: np.ndarray) -> tuple[float, float]:
    limits = [(float(piece.min()), float(piece.max())) for piece in _pieces(images, rows)]
    return min(low for low, _ in limits), max(high for _, high in limits)


def _moments(images: np.ndarray, rows: np.ndarray) -> tuple[list[float], list[float]]:
    """Return the means and the standard deviations of the channels."""
    values = len(rows) * images.shape[2] * images.shape[3]
    sums = sum(piece.sum(axis=(0, 2, 3), dtype=np.float64) for piece in _pieces(images, rows))
    means = np.asarray(sums) / values
    squares = sum(
        ((piece - means[:, None, None]) ** 2).sum(axis=(0, 2, 3)) for piece in _pieces(images, rows)
    )
    return means.tolist(), np.sqrt(np.asarray(squares) / values).tolist()
