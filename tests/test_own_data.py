"""Data sets of one's own: loaded, split, scaled, trained and refused as promised."""

import csv
import hashlib
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn import metrics
from sklearn.compose import make_column_transformer
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils import compute_class_weight
from torchvision import datasets

from fmnist_sweep import augment as augment_command
from fmnist_sweep import confirm
from fmnist_sweep.base.errors import ConfigError, DataError
from fmnist_sweep.engine import functional_model
from fmnist_sweep.engine.augmentation import augmented, draws, parts
from fmnist_sweep.engine.data import (
    BYTES_TO_UNIT,
    UNSCALED,
    DataFormat,
    Examples,
    Scaling,
    class_weights,
)
from fmnist_sweep.engine.settings import AugmentConfig
from fmnist_sweep.results import record
from fmnist_sweep.task.config import DataConfig
from fmnist_sweep.task.data import image_folder, loaders, splits
from fmnist_sweep.task.data.dataset import Part
from fmnist_sweep.task.data.splits import describe, image_scaling, load, load_test, stratified
from tests import test_stacks
from tests.conftest import ROOT, Command, InProcess
from tests.test_stacks import Case, train

CPU = torch.device("cpu")
PAGE = ROOT / "docs" / "your-own-data.md"
QUICK = ("trainer.epochs=2", "model.width=16")


def config(kind: str, **changed: Any) -> DataConfig:
    """The defaults of conf/data/arrays.yaml, with some keys changed."""
    values = {
        "kind": kind,
        "normalise": "minmax",
        "validation": "held_out",
        "val_size": 0.2,
        "train_size": None,
        "classes": None,
        "split_seed": 0,
        "batch_size": 8,
    }
    return DataConfig.model_validate({**values, **changed})


def arrays(n: int = 60, shape: tuple[int, ...] = (6, 5), dtype: Any = np.uint8) -> dict[str, Any]:
    """Learnable images or features of three classes."""
    random = np.random.default_rng(0)
    labels = np.arange(n) % 3
    x = random.integers(0, 100, (n, *shape)).astype(dtype)
    x += (labels * 50).astype(dtype).reshape(n, *[1] * len(shape))
    return {"x_train": x, "y_train": labels}


def npz(path: Path, **values: Any) -> str:
    np.savez(path, **values)
    return str(path)


def test_images_and_features_of_any_shape(tmp_path: Path) -> None:
    for shape, wanted in {
        (6, 5): (1, 6, 5),
        (6, 5, 3): (3, 6, 5),
        (3, 6, 5): (3, 6, 5),
        (6, 5, 1): (1, 6, 5),
    }.items():
        values = arrays(shape=shape)
        path = npz(tmp_path / f"{len(shape)}-{shape[0]}-{shape[-1]}.npz", **values)
        data = load(config("arrays", path=path), CPU, test=True)
        assert data.format == DataFormat(wanted, 3, BYTES_TO_UNIT) and data.test is None
        assert (len(data.train), len(data.validation)) == (48, 12)
        assert torch.bincount(data.validation.labels).tolist() == [4, 4, 4]
        # Every image is in one of the parts, with its label.
        both = torch.cat([data.train.inputs, data.validation.inputs]).reshape(60, -1)
        originals = values["x_train"]
        if shape[-1] in (1, 3):
            originals = originals.transpose(0, 3, 1, 2)
        assert sorted(both.tolist()) == sorted(originals.reshape(60, -1).tolist())
    features = load(
        config("arrays", path=npz(tmp_path / "f.npz", **arrays(shape=(7,)))), CPU, test=False
    )
    assert features.format.shape == (7,) and features.train.inputs.dtype == torch.float32
    assert features.train.inputs.amin(0).tolist() == [-1] * 7
    assert features.train.inputs.amax(0).tolist() == [1] * 7


def test_own_parts_and_names_of_classes(tmp_path: Path) -> None:
    names = np.array(["pear", "apple", "fig"])
    part = arrays(30)
    values = {
        **part,
        "y_train": names[part["y_train"]],
        "x_val": part["x_train"][:6],
        "y_val": names[part["y_train"][:6]],
        "x_test": part["x_train"][6:12],
        "y_test": names[part["y_train"][6:12]],
    }
    path = npz(tmp_path / "fruit.npz", **values)
    data = load(config("arrays", path=path), CPU, test=False)
    assert data.about["classes"] == ["apple", "fig", "pear"]
    assert (len(data.train), len(data.validation), data.test) == (30, 6, None)
    assert data.validation.labels.tolist() == [2, 0, 1, 2, 0, 1]
    examples, form, classes = load_test(config("arrays", path=path))
    assert (len(examples), form.classes, classes) == (6, 3, ("apple", "fig", "pear"))
    two = load(config("arrays", path=path, classes=["pear", "fig"]), CPU, test=True)
    assert {*two.train.labels.tolist()} == {1, 2} and len(two.train) == 20
    assert two.test is not None and len(two.test) == 4


def test_the_test_part_is_not_read_before_it_is_asked_for(tmp_path: Path) -> None:
    values = arrays()
    path = Path(
        npz(tmp_path / "a.npz", **values, x_test=np.array([None]), y_test=values["y_train"])
    )
    assert len(load(config("arrays", path=str(path)), CPU, test=False).train) == 48
    with pytest.raises(DataError, match="x_test: holds Python objects, which are never unpickled"):
        load(config("arrays", path=str(path)), CPU, test=True)


def test_a_folder_of_npy_files_is_the_same_as_an_npz(tmp_path: Path) -> None:
    values = arrays()
    for name, array in values.items():
        np.save(tmp_path / f"{name}.npy", array)
    one = load(config("arrays", path=str(tmp_path)), CPU, test=False)
    other = load(config("arrays", path=npz(tmp_path / "a.npz", **values)), CPU, test=False)
    assert all(map(torch.equal, one.train.slice(0, 48), other.train.slice(0, 48)))
    assert one.about["fingerprint"] == other.about["fingerprint"]


def test_scaling_is_that_of_numpy() -> None:
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (40, 3, 4, 5), dtype=np.uint8)
    scaling, limits = image_scaling(pixels, "standardise")
    scaled = scaling(torch.from_numpy(pixels))
    values = pixels.astype(float)
    expected = (values - values.mean((0, 2, 3), keepdims=True)) / values.std(
        (0, 2, 3), keepdims=True
    )
    torch.testing.assert_close(scaled.double(), torch.from_numpy(expected), atol=1e-5, rtol=1e-5)
    assert limits == (0, 255)
    floats = random.normal(size=(40, 1, 4, 5)).astype(np.float32)
    scaling, limits = image_scaling(floats, "minmax")
    scaled = scaling(torch.from_numpy(floats))
    assert scaled.min().item() == pytest.approx(-1) and scaled.max().item() == pytest.approx(1)
    assert limits == (floats.min(), floats.max())
    unscaled, _ = image_scaling(pixels, "none")
    assert torch.equal(unscaled(torch.from_numpy(pixels)), torch.from_numpy(pixels).float())


@pytest.mark.parametrize("normalise", ["minmax", "standardise", "none"])
@pytest.mark.parametrize("operation", [{"flip": 1.0}, {"shift": 2}, {"erase": 1.0}, {"crop": 0.7}])
def test_augmentation_of_colour_images_is_that_of_each_channel(
    normalise: str, operation: dict[str, Any]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 6, 9), dtype=np.uint8)
    scaling, limits = image_scaling(pixels, normalise)
    form = DataFormat((3, 6, 9), 2, scaling, limits)
    none = {"flip": 0.0, "rotate": 0.0, "shift": 0, "crop": 1.0, "erase": 0.0, "erase_size": 0.5}
    how = AugmentConfig.model_validate({**none, **operation})
    drawn = torch.from_numpy(draws(how, 0, 1, 8, form.shape))
    whole = augmented(scaling(torch.from_numpy(pixels)), drawn, parts(how), form)
    for channel in range(3):
        factor, offset = (
            one[channel] if len(one) == 3 else one[0] for one in (scaling.factor, scaling.offset)
        )
        alone = DataFormat((1, 6, 9), 2, Scaling((factor,), (offset,)), limits)
        plane = alone.scaling(torch.from_numpy(pixels[:, channel : channel + 1]))
        expected = augmented(plane, drawn, parts(how), alone)
        torch.testing.assert_close(whole[:, channel : channel + 1], expected)


def write_table(path: Path, n: int = 60, **changed: Any) -> str:
    random = np.random.default_rng(3)
    rows: dict[str, Any] = {
        "age": random.normal(50, 20, n).round(1),
        "count": random.integers(0, 5, n),
        "colour": np.array(["red", "green", "blue"])[random.integers(0, 3, n)],
        "kind": np.array(["no", "yes"])[np.arange(n) % 2],
    }
    pd.DataFrame({**rows, **changed}).to_csv(path, index=False)
    return str(path)


def test_a_table_is_encoded_on_its_training_rows_alone(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv")
    settings = config("table", path=path, target="kind", normalise="standardise")
    data = load(settings, CPU, test=False)
    assert data.about["classes"] == ["no", "yes"] and data.format.shape == (5,)
    assert data.train.inputs[:, :2].mean(0).abs().max() < 1e-6
    frame = pd.read_csv(path)
    frame.to_parquet(tmp_path / "t.parquet")
    same = load(
        config(
            "table",
            path=str(tmp_path / "t.parquet"),
            **settings.model_dump(include={"target", "normalise"}),
        ),
        CPU,
        test=False,
    )
    assert torch.equal(same.train.inputs, data.train.inputs)
    _, rows = stratified(np.arange(60) % 2, np.arange(60), 12, seed=0)
    encoder = make_column_transformer(
        (StandardScaler(), ["age", "count"]), (OneHotEncoder(sparse_output=False), ["colour"])
    )
    expected = encoder.fit_transform(frame.iloc[rows])
    torch.testing.assert_close(data.train.inputs, torch.tensor(expected, dtype=torch.float32))


def test_a_folder_of_tables_has_its_own_parts(tmp_path: Path) -> None:
    for name, n in {"train": 60, "val": 20, "test": 10}.items():
        write_table(tmp_path / f"{name}.csv", n)
    settings = config("table", path=str(tmp_path), target="kind")
    data = load(settings, CPU, test=True)
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (60, 20, 10)
    published = load(settings.model_copy(update={"validation": "test"}), CPU, test=False)
    assert torch.equal(published.validation.inputs, data.test.inputs)


def save_images(
    folder: Path, mode: str = "RGB", size: tuple[int, int] = (7, 6), n: int = 12
) -> Path:
    random = np.random.default_rng(5)
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            pixels = random.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8) + 100 * label
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(folder / name / f"{i}.png")
    return folder


def test_a_folder_of_images_is_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_SWEEP_CACHE", str(tmp_path / "cache"))
    folder = save_images(tmp_path / "pets/train")
    save_images(tmp_path / "pets/test", n=3)
    settings = config("images", path=str(folder.parent))
    data = load(settings, CPU, test=True)
    assert data.about["classes"] == ["cat", "dog"] and data.format.shape == (3, 6, 7)
    assert data.test is not None and (len(data.train), len(data.test)) == (19, 6)
    first = np.asarray(Image.open(tmp_path / "pets/test/cat/0.png"))
    assert np.array_equal(data.test.inputs[0].permute(1, 2, 0).numpy(), first)
    monkeypatch.setattr(loaders, "_loaded", {})  # as in another process
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "_decode", None)
        again = load(settings, CPU, test=True)
    assert again is not data and again.about == data.about
    assert all(map(torch.equal, again.train.slice(0, 19), data.train.slice(0, 19)))
    grey = load(config("images", path=str(save_images(tmp_path / "grey", "L"))), CPU, test=False)
    assert grey.format.shape == (1, 6, 7)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.mark.parametrize("kind", ["mnist", "kmnist"])
def test_torchvisions_files_are_used_as_they_are(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FMNIST_SWEEP_DATA", raising=False)
    random = np.random.default_rng(0)
    raw = tmp_path / kind.upper() / "raw"
    raw.mkdir(parents=True)
    wanted = {}
    for name, n in {"train": 50, "t10k": 20}.items():
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
        wanted[name] = images
    settings = config(kind, root=str(tmp_path))
    data = load(settings, CPU, test=True)
    assert (len(data.train), len(data.validation)) == (40, 10) and data.test is not None
    assert np.array_equal(data.test.inputs[:, 0].numpy(), wanted["t10k"])
    assert data.format == DataFormat((1, 28, 28), 10, BYTES_TO_UNIT)


def test_emnists_letters_stand_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FMNIST_SWEEP_DATA", raising=False)
    raw = tmp_path / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.zeros((52, 28, 28), np.uint8)
    images[:, 3, 20] = 255  # row and column as in the file
    labels = (np.arange(52) % 26 + 1).astype(np.uint8)
    for part in ("train", "test"):
        (raw / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    data = load(config("emnist", root=str(tmp_path), split="letters", val_size=26), CPU, test=False)
    assert data.about["classes"] == list("abcdefghijklmnopqrstuvwxyz")
    assert data.train.inputs[0, 0].nonzero().tolist() == [[20, 3]]
    assert data.train.labels.min() == 0 and data.train.labels.max() == 25


def cifar_files(folder: Path, cls: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Writes small files in the layout of CIFAR; torchvision gets their checksums."""
    random = np.random.default_rng(0)
    inside = folder / cls.base_folder
    inside.mkdir(parents=True)
    fine = "labels" if cls is datasets.CIFAR10 else "fine_labels"
    count = 10 if cls is datasets.CIFAR10 else 100
    sums, images = {}, {}
    for name in [*(name for name, _ in (*cls.train_list, *cls.test_list)), cls.meta["filename"]]:
        if name == cls.meta["filename"]:
            content: dict[str, Any] = {cls.meta["key"]: [f"class {i}" for i in range(count)]}
        else:
            images[name] = random.integers(0, 256, (2 * count, 3, 32, 32), dtype=np.uint8)
            labels = (np.arange(2 * count) % count).tolist()
            content = {"data": images[name].reshape(2 * count, -1), fine: labels}
        (inside / name).write_bytes(pickle.dumps(content))
        sums[name] = hashlib.md5((inside / name).read_bytes()).hexdigest()
    for which in ("train_list", "test_list"):
        renewed = [[name, sums[name]] for name, _ in getattr(cls, which)]
        monkeypatch.setattr(cls, which, renewed)
    monkeypatch.setitem(cls.meta, "md5", sums[cls.meta["filename"]])
    return images


@pytest.mark.parametrize("cls", [datasets.CIFAR10, datasets.CIFAR100])
def test_cifars_files_are_used_and_their_checksums_checked(
    cls: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FMNIST_SWEEP_DATA", raising=False)
    images = cifar_files(tmp_path, cls, monkeypatch)
    settings = config(cls.__name__.lower(), root=str(tmp_path), val_size=0.5)
    data = load(settings, CPU, test=True)
    classes = 10 if cls is datasets.CIFAR10 else 100
    assert data.format == DataFormat((3, 32, 32), classes, BYTES_TO_UNIT)
    assert data.about["classes"][:2] == ["class 0", "class 1"]
    assert len(data.train) == len(data.validation) == classes * len(cls.train_list)
    assert data.test is not None
    assert np.array_equal(data.test.inputs.numpy(), images[cls.test_list[0][0]])
    damaged = tmp_path / cls.base_folder / cls.train_list[0][0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{cls.__name__} was not found"):
        load(settings, CPU, test=False)


def lying(shape: tuple[int, ...]) -> bytes:
    """An .npy file whose header claims a shape, without its data."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def zipped(path: Path, **members: bytes) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return str(path)


def _truncated(path: Path) -> str:
    npz(path, **arrays())
    path.write_bytes(path.read_bytes()[:-300])
    return str(path)


BAD_ARRAYS: dict[str, tuple[Callable[[Path], str], str]] = {
    "lengths": (
        lambda p: npz(p, **{**arrays(), "y_train": np.arange(59) % 3}),
        "y_train: has 59 labels, .*x_train has 60 examples",
    ),
    "NaN": (
        lambda p: npz(p, x_train=np.full((9, 4), np.nan), y_train=np.arange(9) % 2),
        "x_train: example 0 holds NaN or an infinite number",
    ),
    "one class": (
        lambda p: npz(p, **{**arrays(), "y_train": np.zeros(60, int)}),
        "y_train: holds a single class, 0",
    ),
    "unknown label": (
        lambda p: npz(p, **arrays(), x_val=arrays()["x_train"][:2], y_val=[0, 7]),
        "y_val: holds label 7, which no training example has",
    ),
    "objects": (
        lambda p: npz(p, x_train=np.array([None, 1]), y_train=[0, 1]),
        "x_train: holds Python objects, which are never unpickled",
    ),
    "truncated": (_truncated, "is no .npz file"),
    "no npz": (lambda p: [p.write_text("x"), str(p)][1], "is no .npz file"),
    "missing": (lambda p: str(p), "No such file or directory"),
    "without labels": (lambda p: npz(p, x_train=np.zeros((4, 2))), "has x_train and no y_train"),
    "without training": (lambda p: npz(p, x=np.zeros((4, 2))), "has no x_train and y_train"),
    "four channels": (
        lambda p: npz(p, **arrays(shape=(6, 5, 4))),
        "has shape .60, 6, 5, 4.; images must have 1 or 3 channels",
    ),
    "five dimensions": (
        lambda p: npz(p, **arrays(shape=(2, 2, 2, 2))),
        "has shape .60, 2, 2, 2, 2.; inputs are",
    ),
    "text": (
        lambda p: npz(p, x_train=np.array([["a"], ["b"]]), y_train=[0, 1]),
        "x_train: holds <U1; inputs must be numbers",
    ),
    "fractions": (
        lambda p: npz(p, x_train=np.zeros((2, 2)), y_train=[0.5, 1.0]),
        "y_train: holds float64; labels must be integers or text",
    ),
    "many classes": (
        lambda p: npz(p, x_train=np.zeros((2002, 2)), y_train=np.arange(2002)),
        "holds 2,002 different labels; at most 1,000",
    ),
    "a lying header": (
        lambda p: zipped(p, x_train=lying((10**9, 28, 28)), y_train=lying((10**9,))),
        "x_train: is truncated: 128 bytes, expected 784,000,000,128",
    ),
    "other shapes": (
        lambda p: npz(p, **arrays(), x_val=np.zeros((2, 4, 4), np.uint8), y_val=[0, 1]),
        r"x_val: has examples of shape \[1, 4, 4\], those for training are \[1, 6, 5\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_what_is_no_data_set_is_one_line(name: str, tmp_path: Path) -> None:
    make, message = BAD_ARRAYS[name]
    path = make(tmp_path / "bad.npz")
    with pytest.raises(DataError, match=message) as raised:
        load(config("arrays", path=path), CPU, test=False)
    assert len(str(raised.value).splitlines()) == 1 and "bad.npz" in str(raised.value)


def test_a_lying_npy_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x_train.npy").write_bytes(lying((10**9, 28, 28)))
    np.save(tmp_path / "y_train.npy", np.arange(4))
    with pytest.raises(DataError, match=r"x_train\.npy: is truncated"):
        load(config("arrays", path=str(tmp_path)), CPU, test=False)


@pytest.mark.parametrize(
    ("changed", "target", "error", "message"),
    [
        ({}, "sort", ConfigError, "data.target=sort: .*t.csv has no such column; it has age, "),
        ({"age": [1.0] * 59 + [np.nan]}, "kind", DataError, "column age is empty, .* in row 60"),
        ({"age": [np.inf] + [1.0] * 59}, "kind", DataError, "column age .* infinite in row 1"),
        ({"colour": [None, *["red"] * 59]}, "kind", DataError, "column colour is empty"),
        ({"kind": ["no"] * 60}, "kind", DataError, "holds a single class, no"),
        ({"kind": [None, *["no", "yes"] * 29, "no"]}, "kind", DataError, "kind: is empty in row 1"),
    ],
)
def test_a_table_with_a_fault_is_one_line(
    changed: dict[str, Any], target: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = write_table(tmp_path / "t.csv", **changed)
    with pytest.raises(error, match=message):
        load(config("table", path=path, target=target), CPU, test=False)


def test_images_with_a_fault_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_SWEEP_CACHE", str(tmp_path / "cache"))
    transparent = save_images(tmp_path / "a", "RGBA")
    sizes = save_images(tmp_path / "b")
    Image.new("RGB", (9, 9)).save(sizes / "dog/3.png")
    truncated = save_images(tmp_path / "c", size=(40, 40))
    file = truncated / "dog/2.png"
    file.write_bytes(file.read_bytes()[:900])
    (tmp_path / "d/cat").mkdir(parents=True)
    single = save_images(tmp_path / "e")
    for image in (single / "dog").iterdir():
        image.unlink()
    bomb = save_images(tmp_path / "f", "L")
    Image.new("1", (14_000, 14_000)).save(bomb / "cat/0.png")
    for folder, message in {
        transparent: "cat/0.png: is of mode RGBA",
        sizes: "dog/3.png: has 9 x 9 pixels, .*cat/0.png has 7 x 6",
        truncated: "dog/2.png: ",
        tmp_path / "d": "has no folder of PNG or JPEG images",
        single: "holds a single class, cat",
        bomb: "cat/0.png: Image size .* decompression bomb",
        tmp_path / "g": "data.path=.*g: is no folder",
    }.items():
        with pytest.raises(DataError, match=message) as raised:
            load(config("images", path=str(folder)), CPU, test=False)
        assert len(str(raised.value).splitlines()) == 1


def test_sizes_that_the_data_has_not_are_one_line(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", **arrays())
    for changed, message in (
        ({"val_size": 60}, "data.val_size=60: must be less than 60"),
        ({"train_size": 49}, "data.train_size=49: must be at most 48"),
        ({"batch_size": 61}, "data.batch_size=61: must be at most 60"),
        ({"classes": [0, 3]}, r"data.classes=\[0, 3\]: .* of 0 to 2 or of 0, 1, 2"),
        ({"validation": "test"}, "data.validation=test: .*a.npz has no part for testing"),
    ):
        with pytest.raises(ConfigError, match=message):
            describe(config("arrays", path=path, **changed))


BAD_COMMANDS = {
    ("model=cnn", "data=arrays", "data.path=f.npz"): "takes images, and the data has examples of",
    ("augment=flip", "data=arrays", "data.path=f.npz"): "augment: changes images, and the data has",
    ("model=cnn", "data=arrays", "data.path=i.npz"): "takes images of at least 4 x 4 pixels",
    ("augment=shift", "data=arrays", "data.path=i.npz"): "augment.shift=2: must be less than 2",
    ("data=arrays",): "data.path",
    ("data=custom", "data._target_=os.listdir"): "data._target_=os.listdir: not a trusted target",
    ("data=table", "data.path=x.csv"): "data.target",
    ("data=imges",): "Could not find 'data/imges'",
    ("model=resnet18", "model.channels=sum", "data=arrays", "data.path=c.npz"): "channels=sum: is",
}


@pytest.mark.parametrize("command", BAD_COMMANDS, ids=" ".join)
def test_mistakes_are_told_before_anything_starts(
    command: tuple[str, ...], fmnist_train: Command, tmp_path: Path
) -> None:
    npz(tmp_path / "f.npz", **arrays(shape=(7,)))
    npz(tmp_path / "i.npz", **arrays(shape=(2, 2)))
    npz(tmp_path / "c.npz", **arrays(shape=(8, 8, 3)))
    for more in ((), ("-m", "seed=1,2")):
        outcome = fmnist_train(*more, *command)
        (line,) = outcome.err.strip().splitlines()
        assert outcome.code == 1 and BAD_COMMANDS[command] in line
        assert not (tmp_path / "outputs").exists() and not (tmp_path / "multirun").exists()


def test_a_trial_of_own_data_is_the_same_in_a_stack(fmnist_train: Command, tmp_path: Path) -> None:
    npz(tmp_path / "a.npz", **arrays(200, (8, 8, 3)))
    data = ("data=arrays", "data.path=a.npz", "data.normalise=standardise", *QUICK)
    assert fmnist_train(*data, "seed=1", "augment=standard", "hydra.run.dir=one").code == 0
    sweep = fmnist_train("-m", *data, "seed=0,1,2", "augment=standard", "name=three")
    assert sweep.code == 0, sweep.err
    assert _history(Path("one")) == _history(Path("multirun/three/1"))
    environment = record.read_json(Path("multirun/three/1"), "environment.json")
    assert environment["data"]["classes"] == ["0", "1", "2"]
    assert "arrays" not in environment["data"]["name"] and environment["data"]["name"] == "a"
    assert _history(Path("one"))[-1]["train_loss"] < _history(Path("one"))[0]["train_loss"]


def _history(run: Path) -> list[dict[str, float]]:
    rows = record.read_history(run)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def test_a_sweep_does_not_resume_on_other_data(fmnist_train: Command, tmp_path: Path) -> None:
    values = arrays(100)
    npz(tmp_path / "a.npz", **values)
    sweep = ("-m", "data=arrays", "data.path=a.npz", *QUICK, "name=s", "hydra.sweeper.n_trials=1")
    assert fmnist_train(*sweep, "seed=range(3)").code == 0
    values["x_train"][0] += 1
    npz(tmp_path / "a.npz", **values)
    outcome = fmnist_train(*sweep[:-1], "seed=range(3)")
    assert outcome.code == 1 and "  fingerprint of the data: " in outcome.err
    assert len(list(Path("multirun/s").glob("[0-9]"))) == 1


def test_without_a_test_part_confirmation_ends_with_its_ranking(
    fmnist_train: Command, in_process: InProcess, tmp_path: Path
) -> None:
    npz(tmp_path / "a.npz", **arrays(100))
    sweep = ("-m", "data=arrays", "data.path=a.npz", *QUICK, "name=s", "optimizer.lr=0.001,0.01")
    assert fmnist_train(*sweep).code == 0
    outcome = in_process(confirm.main)("multirun/s", "--top", "2", "--seeds", "2")
    assert outcome.code == 0, outcome.err
    assert "data=arrays has no part for testing: the ranking is the result" in outcome.out
    assert not Path("multirun/s/model.pt").exists() and Path("multirun/s/confirm.csv").exists()


def load_halves(n: int = 40) -> dict[str, Any]:
    """A function of the user's."""
    values = arrays(n, (5,), np.float32)
    return {name: torch.from_numpy(array) for name, array in values.items()}


def load_nothing() -> int:
    """A function of the user's that returns no data set."""
    return 3


def test_a_function_of_ones_own(fmnist_train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", "tests.*")
    own = ("data=custom", "data._target_=tests.test_own_data.load_halves", *QUICK)
    done = fmnist_train(*own, "+data.arguments.n=50", "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert record.summary(Path("run"))["train_size"] == 40  # type: ignore[index]
    wrong = fmnist_train("data=custom", "data._target_=tests.test_own_data.load_nothing")
    assert (
        wrong.code == 1 and "must return a mapping with x_train, y_train, ..., not int" in wrong.err
    )


class Own(torch.nn.Module):
    """A network of the user's that asks for the shape and the classes."""

    def __init__(self, inputs: tuple[int, ...], classes: int, units: int) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(int(np.prod(inputs)), units),
            torch.nn.Tanh(),
            torch.nn.Linear(units, classes),
        )

    def forward(self, examples: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(examples)
        return logits


def test_a_network_of_ones_own_gets_shape_and_classes(
    fmnist_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", "tests.*")
    npz(tmp_path / "a.npz", **arrays(60, (4, 3)))
    own = ("~model", "+model._target_=tests.test_own_data.Own", "+model.units=5")
    data = ("data=arrays", "data.path=a.npz", "trainer.epochs=1")
    done = fmnist_train(*own, *data, "hydra.run.dir=run")
    assert done.code == 0, done.err
    assert record.summary(Path("run"))["parameters"] == 12 * 5 + 5 + 5 * 3 + 3  # type: ignore[index]


def test_samples_of_augmented_colour_images_are_drawn(
    in_process: InProcess, tmp_path: Path
) -> None:
    npz(tmp_path / "a.npz", **arrays(60, (16, 12, 3)))
    run = in_process(augment_command.main)
    outcome = run(
        "data=arrays", "data.path=a.npz", "augment=standard", "data.normalise=standardise"
    )
    assert outcome.code == 0 and Path("outputs/augment.png").exists(), outcome.err


@pytest.mark.slow
def test_the_page_as_printed(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name
        (tmp_path / name[1]).write_text(code)
    (tmp_path / "mypackage.py").write_text(
        "from sklearn.datasets import load_digits\n"
        "def load():\n"
        "    x, y = load_digits(return_X_y=True)\n"
        "    return {'x_train': x, 'y_train': y}\n"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    # The page searches for a minute, and compiles its steps in another.
    shorter = "hydra.sweeper.n_trials=20", "hydra.sweeper.n_trials=3 trainer.epochs=5"
    eager = re.compile(r"(?<=fmnist_sweep\.train )")
    environment = {**os.environ, "PATH": path, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    for command in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        done = subprocess.run(
            ["bash", "-ec", eager.sub("trainer.compile=false ", command.replace(*shorter))],
            cwd=tmp_path, capture_output=True, text=True, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    confirmed = json.loads((tmp_path / "multirun/digits/confirm.json").read_text())
    assert confirmed["test"]["accuracy"]["mean"] > 0.7
    assert [row["class"] for row in confirmed["test"]["per_class"]] == list("0123456789")
    assert "test" not in {
        k
        for k, v in json.loads((tmp_path / "multirun/patients/confirm.json").read_text()).items()
        if v
    }
    with open(tmp_path / "multirun/shapes/sweep.csv") as rows:
        assert max(float(row["val_accuracy"]) for row in csv.DictReader(rows)) > 0.6


def test_figures_of_unequal_classes_are_scikit_learns() -> None:
    random = np.random.default_rng(2)
    labels = random.choice(5, 2500, p=[0.7, 0.2, 0.06, 0.04, 0.0])  # the last never occurs
    guess = np.where(random.random(2500) < 0.7, labels, random.integers(0, 4, 2500))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 6, bias=False))
    logits = np.eye(6, dtype=np.float32)[guess]
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(6))  # type: ignore[operator,union-attr]
    examples = Examples(torch.from_numpy(logits), torch.from_numpy(labels))
    found = functional_model.evaluate(model, examples, UNSCALED)
    assert found.accuracy == metrics.accuracy_score(labels, guess)
    assert found.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(labels, guess))
    expected = metrics.f1_score(labels, guess, average="macro", zero_division=0)
    assert found.macro_f1 == pytest.approx(expected)
    assert found.loss == pytest.approx(metrics.log_loss(labels, _softmax(logits), labels=range(6)))


def _softmax(logits: np.ndarray) -> np.ndarray:
    return torch.softmax(torch.from_numpy(logits).double(), dim=1).numpy()


@pytest.mark.parametrize("objective", ["val_balanced_accuracy", "val_macro_f1"])
def test_a_sweep_can_optimise_them(objective: str, fmnist_train: Command, tmp_path: Path) -> None:
    values = arrays(120)
    kept = np.flatnonzero((values["y_train"] == 0) | (np.arange(120) < 40))
    npz(tmp_path / "a.npz", **{name: array[kept] for name, array in values.items()})
    sweep = ("-m", "data=arrays", "data.path=a.npz", *QUICK, "name=s", "optimizer.lr=1e-6,0.01")
    done = fmnist_train(*sweep, f"hydra.sweeper.objective={objective}")
    assert done.code == 0, done.err
    rows = pd.read_csv("multirun/s/sweep.csv")
    histories = [record.read_history(Path(f"multirun/s/{n}"))[-1][objective] for n in (0, 1)]
    assert rows.sort_values("trial")[objective].tolist() == histories
    assert histories[1] > histories[0]


def test_weights_of_classes_are_those_of_pytorchs_loss() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    inputs, labels = torch.randn(50, 4), torch.arange(50).remainder(10).clamp(max=2)
    weights = class_weights(labels, 3)
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    torch.testing.assert_close(weights.double(), torch.from_numpy(expected))
    functional = functional_model.FunctionalModel(model)
    for power, smoothing in ((1.0, 0.0), (0.5, 0.0), (1.0, 0.2)):
        chosen = weights**power
        loss = torch.nn.functional.cross_entropy(model(inputs), labels, weight=chosen)
        if smoothing:
            spread = -model(inputs).log_softmax(-1).mean(-1)
            uniform = (spread * chosen[labels]).sum() / chosen[labels].sum()
            loss = loss + smoothing * (uniform - loss)
        by_hand = torch.autograd.grad(loss, list(model.parameters()))
        gradient, summed, _ = functional.gradients(
            functional.flatten(model).unsqueeze(0),
            {},
            inputs.unsqueeze(0),
            labels.unsqueeze(0),
            torch.tensor([smoothing]) if smoothing else None,
            chosen[labels].unsqueeze(0),
        )
        torch.testing.assert_close(gradient[0], torch.cat([g.flatten() for g in by_hand]))
        plain = torch.nn.functional.cross_entropy(model(inputs), labels, reduction="sum")
        assert summed.item() == pytest.approx(plain.item())


def test_weights_of_classes_can_be_swept_in_a_stack(fmnist_train: Command, tmp_path: Path) -> None:
    values = arrays(300, (5, 5))
    kept = np.flatnonzero((values["y_train"] == 0) | (np.arange(300) % 10 == 0))
    npz(tmp_path / "a.npz", **{name: array[kept] for name, array in values.items()})
    data = ("data=arrays", "data.path=a.npz", *QUICK)
    assert fmnist_train(*data, "trainer.class_balance=0.5", "hydra.run.dir=one").code == 0
    done = fmnist_train("-m", *data, "trainer.class_balance=0.0,0.5,1.0", "name=three")
    assert done.code == 0, done.err
    histories = [_history(Path(f"multirun/three/{number}")) for number in range(3)]
    assert histories[1] == _history(Path("one")) and histories[0] != histories[1] != histories[2]


def test_files_that_are_mapped_are_not_copied(tmp_path: Path) -> None:
    values = arrays(60, (6, 5, 3))
    for name, array in values.items():
        np.save(tmp_path / f"{name}.npy", array)
    path = npz(tmp_path / "a.npz", **values)
    for normalise in ("minmax", "standardise"):
        mapped, read = (
            load(config("arrays", path=one, normalise=normalise), CPU, test=False)
            for one in (str(tmp_path), path)
        )
        assert mapped.train.rows is not None and len(mapped.train) == 48
        assert mapped.train.inputs.data_ptr() == mapped.validation.inputs.data_ptr()
        assert mapped.format == read.format
        for a, b in ((mapped.train, read.train), (mapped.validation, read.validation)):
            assert all(map(torch.equal, a.slice(3, 9), b.slice(3, 9)))
            assert torch.equal(a.own_labels, b.labels)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("mapped", [False, True])
def test_examples_that_stay_on_the_host_give_the_same_numbers(mapped: bool, tmp_path: Path) -> None:
    for name, array in arrays(300, (28, 28)).items():
        np.save(tmp_path / f"{name}.npy", array)
    resident = load(config("arrays", path=str(tmp_path)), CPU, test=False)
    if not mapped:
        whole = Examples(*resident.train.slice(0, len(resident.train)))
        resident = replace(resident, train=whole)
    streamed = replace(resident, train=replace(resident.train, streamed=True))
    cases = [Case(seed, batch=32, recipe=test_stacks.changed(flip=0.5)) for seed in range(3)]
    histories, _ = train(cases, streamed)
    assert len(histories[0]) == 2 and histories == train(cases, resident)[0]


def test_another_process_maps_the_file_again(tmp_path: Path) -> None:
    values = arrays(3000, (32, 32))
    for name, array in values.items():
        np.save(tmp_path / f"{name}.npy", array)
    data = load(config("arrays", path=str(tmp_path)), CPU, test=False)
    text = pickle.dumps(data)
    assert len(text) < values["x_train"].nbytes / 20
    again = pickle.loads(text)
    for mine, theirs in ((data.train, again.train), (data.validation, again.validation)):
        assert all(map(torch.equal, mine.slice(0, 3000), theirs.slice(0, 3000)))


def test_examples_larger_than_half_of_the_memory_stay_on_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = arrays(100)["x_train"].nbytes
    chosen = [splits._Chosen(Part(*arrays(100).values()), np.arange(100))]
    for free, fits in ((2 * needed, True), (2 * needed - 1, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**9))
        assert splits._fit(chosen, torch.device("cuda")) is fits
    assert splits._fit(chosen, CPU)


def test_a_run_of_mapped_files_is_the_same(fmnist_train: Command, tmp_path: Path) -> None:
    values = arrays(100)
    (tmp_path / "folder").mkdir()
    for name, array in values.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    npz(tmp_path / "a.npz", **values)
    for path, run in (("folder", "one"), ("a.npz", "two")):
        done = fmnist_train("data=arrays", f"data.path={path}", *QUICK, f"hydra.run.dir={run}")
        assert done.code == 0, done.err
    assert _history(Path("one")) == _history(Path("two"))
    sweep = fmnist_train("-m", "data=arrays", "data.path=folder", *QUICK, "seed=0,1", "name=s")
    assert sweep.code == 0 and _history(Path("multirun/s/0")) == _history(Path("one"))
