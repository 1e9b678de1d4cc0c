"""The data set's files: where they come from and what is refused."""

import gzip
import logging
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fmnist_sweep.data import source
from fmnist_sweep.data.source import DataError, locate

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = source.SHA256


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FMNIST_SWEEP_DATA", raising=False)


@pytest.fixture
def copy(tmp_path: Path, data_root: Path) -> Path:
    """A copy of the real files, free to be damaged; returns its raw folder."""
    shutil.copytree(data_root / "FashionMNIST", tmp_path / "FashionMNIST")
    return tmp_path / "FashionMNIST" / "raw"


def write_idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.tobytes())


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Another data set of the same shapes, of 20 images each; returns its raw folder."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for images, labels in source.SPLITS.values():
        write_idx(raw / images, np.full((20, 28, 28), 7, np.uint8))
        write_idx(raw / labels, np.arange(20, dtype=np.uint8) % 10)
    return raw


def test_real_files_verify_and_load(data_root: Path) -> None:
    files = locate(data_root)
    images, labels = source.load(files, "train")
    assert images.shape == (60_000, 28, 28) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [6000] * 10
    test_images, test_labels = source.load(files, "test")
    assert test_images.shape == (10_000, 28, 28) and len(test_labels) == 10_000


def flip_a_byte(raw: Path) -> None:
    data = bytearray((raw / TRAIN_IMAGES).read_bytes())
    data[1_000_000] ^= 1
    (raw / TRAIN_IMAGES).write_bytes(data)


def truncate(raw: Path) -> None:
    with open(raw / TEST_LABELS, "r+b") as file:
        file.truncate(5000)


def swap(raw: Path) -> None:
    (raw / TRAIN_LABELS).rename(raw / "x")
    (raw / TEST_LABELS).rename(raw / TRAIN_LABELS)
    (raw / "x").rename(raw / TEST_LABELS)


def replace_by_text(raw: Path) -> None:
    (raw / TEST_IMAGES).write_text("<html>404</html>")


@pytest.mark.parametrize(
    ("damage", "name", "what"),
    [
        (flip_a_byte, TRAIN_IMAGES, "is altered"),
        (truncate, TEST_LABELS, "is truncated: 5,000 bytes, 10,008 by its header"),
        (swap, TRAIN_LABELS, f"holds the content of {TEST_LABELS}"),
        (replace_by_text, TEST_IMAGES, "is not an IDX file"),
    ],
)
def test_damage_is_named_and_left_alone(damage, name: str, what: str, copy: Path) -> None:  # type: ignore[no-untyped-def]
    damage(copy)
    damaged = (copy / name).read_bytes()
    with pytest.raises(DataError) as error:
        locate(copy.parent.parent)
    assert str(copy / name) in str(error.value)
    assert what in str(error.value) and "data.verify=false" in str(error.value)
    assert (copy / name).read_bytes() == damaged


def test_only_the_splits_asked_for_are_read(copy: Path) -> None:
    truncate(copy)
    assert locate(copy.parent.parent, splits=["train"]).folder == copy


def test_compressed_files_are_unpacked(copy: Path) -> None:
    packed = gzip.compress((copy / TEST_LABELS).read_bytes())
    (copy / f"{TEST_LABELS}.gz").write_bytes(packed)
    (copy / TEST_LABELS).unlink()
    locate(copy.parent.parent)
    assert (copy / TEST_LABELS).stat().st_size == 10_008
    assert not list(copy.glob(".*"))


def test_damaged_archive_is_named(copy: Path) -> None:
    packed = gzip.compress((copy / TEST_LABELS).read_bytes())
    (copy / f"{TEST_LABELS}.gz").write_bytes(packed[:-100])
    (copy / TEST_LABELS).unlink()
    with pytest.raises(DataError, match=rf"{TEST_LABELS}\.gz: is damaged"):
        locate(copy.parent.parent)
    assert not list(copy.glob(".*"))


def test_gzip_bomb_is_stopped(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "LARGEST", 2 * 2**20)
    (copy / f"{TEST_LABELS}.gz").write_bytes(gzip.compress(bytes(2**24)))
    (copy / TEST_LABELS).unlink()
    with pytest.raises(DataError, match="unpacks to more than any file"):
        locate(copy.parent.parent)


def test_another_data_set_needs_verify_off(foreign: Path) -> None:
    root = foreign.parent.parent
    with pytest.raises(DataError, match="is altered"):
        locate(root)
    images, labels = source.load(locate(root, verify=False), "test")
    assert images.shape == (20, 28, 28) and (images == 7).all() and labels[11] == 1


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        (TRAIN_LABELS, np.full(20, 10, np.uint8), "labels must be 0 to 9"),
        (TRAIN_LABELS, np.zeros(19, np.uint8), "another number of images"),
        (TRAIN_IMAGES, np.zeros((20, 32, 32), np.uint8), "32 x 32 pixels, not 28 x 28"),
        (TRAIN_IMAGES, np.zeros(20, np.uint8), "is not an IDX file of 3 dimension"),
    ],
)
def test_wrong_content_is_refused_unverified(
    name: str, values: np.ndarray, what: str, foreign: Path
) -> None:
    write_idx(foreign / name, values)
    with pytest.raises(DataError, match=what):
        locate(foreign.parent.parent, verify=False)


def test_header_that_lies_is_refused(foreign: Path) -> None:
    lie = struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 28, 28)
    (foreign / TRAIN_IMAGES).write_bytes(lie + bytes(100))
    with pytest.raises(DataError, match="is truncated: 116 bytes"):
        locate(foreign.parent.parent, verify=False)


@pytest.fixture
def sources(
    monkeypatch: pytest.MonkeyPatch, data_root: Path
) -> dict[str, Path | source.Unavailable]:
    """Replaces the three sources by folders or refusals of the test's choice."""
    given: dict[str, Path | source.Unavailable] = {
        name: source.Unavailable(f"no {name}") for name in ("_installed", "_torchvision", "_apt")
    }

    def taker(name: str):  # type: ignore[no-untyped-def]
        def take(_: Path) -> Path:
            found = given[name]
            if isinstance(found, Path):
                return found
            raise found

        return take

    for name in given:
        monkeypatch.setattr(source, name, taker(name))
    return given


def test_sources_are_tried_in_order(
    tmp_path: Path, data_root: Path, sources, caplog: pytest.LogCaptureFixture
) -> None:  # type: ignore[no-untyped-def]
    sources["_torchvision"] = data_root / "FashionMNIST" / "raw"
    sources["_apt"] = tmp_path
    with caplog.at_level(logging.INFO):
        files = locate(tmp_path / "new")
    assert files.origin == "torchvision's download"
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(": ", 2)[1] for line in lines] == [
        str(tmp_path / "new"),
        "Debian package dataset-fashion-mnist",
        "torchvision's download",
    ]
    assert sorted(path.name for path in files.folder.iterdir()) == sorted(source.SHA256)
    assert locate(tmp_path / "new").origin == str(tmp_path / "new")


def test_a_bad_source_is_passed_over(tmp_path: Path, copy: Path, data_root: Path, sources) -> None:  # type: ignore[no-untyped-def]
    flip_a_byte(copy)
    sources["_installed"] = copy
    sources["_apt"] = data_root / "FashionMNIST" / "raw"
    assert locate(tmp_path / "new").origin.startswith("apt-get")


def test_no_source_at_all_says_what_to_do(tmp_path: Path, sources) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError) as error:
        locate(tmp_path / "new")
    text = str(error.value)
    for part in ("no _installed", "no _torchvision", "no _apt", "FMNIST_SWEEP_DATA", "network"):
        assert part in text
    assert len(text.splitlines()) <= 8
    assert not any(path.is_file() for path in (tmp_path / "new").rglob("*"))


def test_unusable_root_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Not a directory") as error:
        locate(tmp_path / "file")
    assert len(str(error.value).splitlines()) == 1


def test_two_processes_at_once(tmp_path: Path, data_root: Path) -> None:
    code = (
        "import sys, pathlib; from fmnist_sweep.data import source\n"
        "source._installed = lambda _: pathlib.Path(sys.argv[1])\n"
        "print(source.locate(sys.argv[2]).folder)"
    )
    raw = str(data_root / "FashionMNIST" / "raw")
    command = [sys.executable, "-c", code, raw, str(tmp_path / "shared")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for process in both:
        process.communicate()
        assert process.returncode == 0
    folder = tmp_path / "shared" / "FashionMNIST" / "raw"
    assert sorted(path.name for path in folder.iterdir()) == sorted(source.SHA256)


def test_command_prints_the_files(
    data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["source", "--root", str(data_root)])
    source.main()
    out = capsys.readouterr().out
    assert out.count("verified") == 4 and "47,040,016 bytes" in out


def test_command_fails_with_the_reason(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truncate(copy)
    monkeypatch.setattr(sys, "argv", ["source", "--root", str(copy.parent.parent)])
    with pytest.raises(SystemExit, match="is truncated"):
        source.main()
