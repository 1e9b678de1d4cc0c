"""Splits and orders."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fmnist_sweep.config import ConfigError, DataConfig
from fmnist_sweep.data import source
from fmnist_sweep.data.batches import load, normalise, order, stratified


@pytest.fixture(scope="module")
def labels(data_root):  # type: ignore[no-untyped-def]
    return source.load(source.locate(data_root), "train")[1]


def test_split_is_disjoint_and_complete(labels: np.ndarray) -> None:
    held_out, left = stratified(labels, np.arange(60_000), 10_000, seed=0)
    assert len(held_out) == 10_000 and len(left) == 50_000
    assert np.array_equal(np.sort(np.concatenate([held_out, left])), np.arange(60_000))


@pytest.mark.parametrize("size", [10_000, 9_999, 1234, 10])
def test_split_takes_every_class_alike(labels: np.ndarray, size: int) -> None:
    held_out, _ = stratified(labels, np.arange(60_000), size, seed=0)
    counts = np.bincount(labels[held_out], minlength=10)
    assert counts.sum() == size and counts.max() - counts.min() <= 1


def test_split_depends_on_its_seed_alone(labels: np.ndarray) -> None:
    first, _ = stratified(labels, np.arange(60_000), 10_000, seed=0)
    again, _ = stratified(labels, np.arange(60_000), 10_000, seed=0)
    other, _ = stratified(labels, np.arange(60_000), 10_000, seed=1)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    # Published figures rest on this very split.
    assert first[:5].tolist() == [0, 3, 11, 17, 18]


def test_split_of_too_few_images() -> None:
    with pytest.raises(ConfigError, match="ask for 11 images of 10"):
        stratified(np.zeros(10, np.uint8), np.arange(10), 11, seed=0)


def test_validation_on_training_images_holds_nothing_out(data_root: Path) -> None:
    config = DataConfig(
        root=str(data_root),
        verify=True,
        validation="train",
        val_size=500,
        train_size=None,
        split_seed=0,
        batch_size=32,
    )
    data = load(config, torch.device("cpu"), test=False)
    assert (len(data.train), len(data.validation), data.test) == (60_000, 500, None)
    assert torch.bincount(data.validation.labels).tolist() == [50] * 10


def test_order_is_a_permutation_of_its_own() -> None:
    orders = [order(seed, epoch, 1000) for seed in (0, 1) for epoch in (1, 2)]
    for one in orders:
        assert torch.equal(one.sort().values, torch.arange(1000))
    assert len({tuple(one.tolist()) for one in orders}) == 4
    assert torch.equal(order(1, 2, 1000), orders[3])


def test_pixels_become_what_torchvision_makes_of_them() -> None:
    from torchvision.transforms import Compose, Normalize, ToTensor

    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    published = Compose([ToTensor(), Normalize((0.5,), (0.5,))])(pixels)
    ours = normalise(torch.from_numpy(pixels[..., 0]).unsqueeze(0))
    torch.testing.assert_close(ours, published, rtol=0, atol=1e-6)
    assert ours.min() == -1 and ours.max() == 1
