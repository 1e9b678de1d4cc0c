"""Splits and orders."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmnist_sweep.engine.data import BYTES_TO_UNIT, Examples, epoch_permutation
from fmnist_sweep.task.config import ConfigError, DataConfig
from fmnist_sweep.task.data import source
from fmnist_sweep.task.data.splits import describe, load, stratified


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
    with pytest.raises(ConfigError, match="ask for 11 examples of 10"):
        stratified(np.zeros(10, np.uint8), np.arange(10), 11, seed=0)


def config(data_root: Path, **changed: Any) -> DataConfig:
    """The defaults, with some keys changed."""
    values = {
        "kind": "fashion_mnist",
        "normalise": "minmax",
        "root": str(data_root),
        "verify": True,
        "validation": "held_out",
        "val_size": 10_000,
        "train_size": None,
        "classes": None,
        "split_seed": 0,
        "batch_size": 32,
    }
    return DataConfig.model_validate({**values, **changed})


def test_what_else_is_in_the_folder_may_go_at_any_time(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FMNIST_SWEEP_DATA", raising=False)
    shutil.copytree(data_root, tmp_path / "data")
    raw = tmp_path / "data/FashionMNIST/raw"
    (raw / ".fetching-gone").symlink_to("nowhere")
    first = load(config(tmp_path / "data"), torch.device("cpu"), test=False).train
    assert load(config(tmp_path / "data"), torch.device("cpu"), test=False).train is first
    os.utime(raw / "train-labels-idx1-ubyte", ns=(1, 1))
    assert load(config(tmp_path / "data"), torch.device("cpu"), test=False).train is not first


def test_validation_on_training_images_holds_nothing_out(data_root: Path) -> None:
    all_but_none = config(data_root, validation="train", val_size=500)
    data = load(all_but_none, torch.device("cpu"), test=False)
    assert (len(data.train), len(data.validation), data.test) == (60_000, 500, None)
    assert torch.bincount(data.validation.labels).tolist() == [50] * 10


def counts(images: Examples) -> list[int]:
    return torch.bincount(images.labels, minlength=10).tolist()


@pytest.mark.parametrize("validation", ["held_out", "test", "train"])
def test_classes_leave_away_the_images_of_others(data_root: Path, validation: str) -> None:
    cpu = torch.device("cpu")
    whole = load(config(data_root, validation=validation), cpu, test=True)
    some = load(config(data_root, validation=validation, classes=[9, 2]), cpu, test=True)
    for every, chosen in ((whole.train, some.train), (whole.test, some.test)):
        assert every is not None and chosen is not None
        wanted = (every.labels == 2) | (every.labels == 9)
        assert torch.equal(chosen.inputs, every.inputs[wanted])
        assert torch.equal(chosen.labels, every.labels[wanted])
    if validation != "train":  # where val_size is how many of what is trained on
        wanted = (whole.validation.labels == 2) | (whole.validation.labels == 9)
        assert torch.equal(some.validation.inputs, whole.validation.inputs[wanted])
    assert {*some.validation.labels.tolist()} == {2, 9}


def test_train_size_counts_images_of_the_classes(data_root: Path) -> None:
    few = config(data_root, classes=[0, 3, 7], train_size=300, val_size=1000)
    data = load(few, torch.device("cpu"), test=False)
    assert counts(data.train) == [100, 0, 0, 100, 0, 0, 0, 100, 0, 0]
    assert counts(data.validation) == [100, 0, 0, 100, 0, 0, 0, 100, 0, 0]


@pytest.mark.parametrize("classes", [None, [0, 1], [0, 7, 9], [8, 9]])
@pytest.mark.parametrize("val_size", [10, 1234, 9999])
def test_available_is_what_is_there(
    data_root: Path, classes: list[int] | None, val_size: int
) -> None:
    every = config(data_root, classes=classes, val_size=val_size)
    data = load(every, torch.device("cpu"), test=False)
    assert describe(every).training == len(data.train)


def test_a_class_without_images_is_one_line(data_root: Path, tmp_path: Path) -> None:
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for file in (data_root / "FashionMNIST/raw").glob("train-*-ubyte"):
        content = bytearray(file.read_bytes())
        if "labels" in file.name:
            content[8:] = bytes(content[8:]).replace(b"\x04", b"\x03")
        (raw / file.name).write_bytes(content)
    bare = config(tmp_path, verify=False, classes=[3, 4])
    with pytest.raises(ConfigError, match=r"data.classes=\[3, 4\]: no example is of class 4"):
        load(bare, torch.device("cpu"), test=False)


def test_order_is_a_permutation_of_its_own() -> None:
    orders = [epoch_permutation(seed, epoch, 1000) for seed in (0, 1) for epoch in (1, 2)]
    for one in orders:
        assert torch.equal(one.sort().values, torch.arange(1000))
    assert len({tuple(one.tolist()) for one in orders}) == 4
    assert torch.equal(epoch_permutation(1, 2, 1000), orders[3])


def test_pixels_become_what_torchvision_makes_of_them() -> None:
    from torchvision.transforms import Compose, Normalize, ToTensor

    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    published = Compose([ToTensor(), Normalize((0.5,), (0.5,))])(pixels)
    ours = BYTES_TO_UNIT(torch.from_numpy(pixels[..., 0]).unsqueeze(0))
    torch.testing.assert_close(ours, published, rtol=0, atol=1e-6)
    assert ours.min() == -1 and ours.max() == 1
