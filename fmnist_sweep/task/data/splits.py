"""Split the data set and move its images to the device."""

import functools
import logging

import numpy as np
import torch

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.engine.data import DataSplits, Images
from fmnist_sweep.task.config import DataConfig
from fmnist_sweep.task.data import source
from fmnist_sweep.task.data.idx import SPLITS

log = logging.getLogger(__name__)


def load(config: DataConfig, device: torch.device, test: bool) -> DataSplits:
    """Find, verify and split the data, move it to the device, and log one line about it.

    Args:
        config: the section `data`.
        device: the device to move the images to.
        test: return the test images. With `data.validation=test` their files are read anyway.

    Raises:
        DataError: no source has the files, or a file is damaged.
        ConfigError: the data set is smaller than the sizes asked for, or has no image of a class.
    """
    opened = test or config.validation == "test"
    splits = ("train", "test") if opened else ("train",)
    files = source.locate(config.root, verify=config.verify, splits=splits)
    # A file that has changed since is read again. Only these files: another process's download may
    # vanish from the folder at any moment.
    names = [name for split in splits for name in SPLITS[split]]
    modified = tuple((files.folder / name).stat().st_mtime_ns for name in names)
    # The split does not depend on the batch size: trials with different sizes share a copy.
    train, validation, test_images = _read_and_split(
        files, modified, config.model_copy(update={"batch_size": 1}), device, opened
    )
    log.info(
        "Data: %s training, %s validation%s images%s from %s",
        f"{len(train):,}",
        f"{len(validation):,}",
        f", {len(test_images):,} test" if test and test_images is not None else "",
        f" of classes {', '.join(map(str, config.classes))}" if config.classes else "",
        files.origin,
    )
    if config.validation == "test":
        log.warning(
            "data.validation=test: the validation figures are those of the test images; "
            "what is selected on them says nothing about new images"
        )
    if config.validation == "train":
        log.warning(
            "data.validation=train: nothing is held out; the validation figures are of images "
            "that are trained on"
        )
    return DataSplits(train, validation, test_images if test else None)


@functools.lru_cache(maxsize=1)
def _read_and_split(
    files: source.Files,
    modified: tuple[int, ...],
    config: DataConfig,
    device: torch.device,
    opened: bool,
) -> tuple[Images, Images, Images | None]:
    """Return the training, the validation and, if `opened`, the test images.

    All trials of a sweep share one copy. The images to hold out are chosen among all classes, so
    that `data.classes` only removes images from each split.
    """
    pixels, labels = source.load(files, "train")
    test_images = None
    if opened:
        test_pixels, test_labels = source.load(files, "test")
        chosen = _of_classes(test_labels, np.arange(len(test_labels)), config.classes)
        test_images = _to_device(test_pixels[chosen], test_labels[chosen], device)
    if config.validation != "held_out":
        held_out, left = np.array([], dtype=np.int64), np.arange(len(labels))
    else:
        held_out, left = stratified(
            labels, np.arange(len(labels)), config.val_size, config.split_seed
        )
        held_out = _of_classes(labels, held_out, config.classes)
    left = _of_classes(labels, left, config.classes)
    if config.train_size is not None:
        left, _ = stratified(labels, left, config.train_size, config.split_seed)
    if config.validation == "train":
        held_out, _ = stratified(labels, left, min(config.val_size, len(left)), config.split_seed)
    train = _to_device(pixels[left], labels[left], device)
    if config.validation == "test":
        assert test_images is not None
        return train, test_images, test_images
    return train, _to_device(pixels[held_out], labels[held_out], device), test_images


def _of_classes(
    labels: np.ndarray, candidates: np.ndarray, classes: tuple[int, ...] | None
) -> np.ndarray:
    """Return those candidates, indices into `labels`, whose label is one of the classes."""
    if classes is None:
        return candidates
    missing = set(classes) - set(labels[candidates].tolist())
    if missing:
        raise ConfigError(
            f"data.classes={list(classes)}: there is no image of class {min(missing)}"
        )
    return candidates[np.isin(labels[candidates], classes)]


def stratified(
    labels: np.ndarray, candidates: np.ndarray, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw `size` of the candidates at random, the same share of every class.

    Args:
        labels: uint8 [n], the class of every image.
        candidates: int64 [m], indices into `labels`, ascending.
        size: the number of images to draw, 1 <= size <= m.
        seed: the seed of the draw.

    Returns:
        The indices drawn and those left, each int64, ascending. Shares are rounded by largest
        remainder, so that exactly `size` are drawn.

    Raises:
        ConfigError: there are fewer than `size` candidates.
    """
    if size > len(candidates):
        raise ConfigError(
            f"data.val_size and data.train_size ask for {size:,} images of {len(candidates):,}"
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


def _to_device(pixels: np.ndarray, labels: np.ndarray, device: torch.device) -> Images:
    return Images(
        torch.from_numpy(pixels).unsqueeze(1).to(device),
        torch.from_numpy(labels.astype(np.int64)).to(device),
    )
