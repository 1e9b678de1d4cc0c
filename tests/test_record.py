"""Run folders: written whole, read back exactly."""

import math
import os
from pathlib import Path

import pytest

from fmnist_sweep import record
from fmnist_sweep.record import Epoch

ROWS = [
    Epoch(1, 1e-3, 0.1 + 0.2, 1 / 3, 2.5, 0.5, 0.7),
    Epoch(2, 1e-4, math.nan, 0.0, 1.0, 1.0, 0.6),
]


def test_history_keeps_every_digit(tmp_path: Path) -> None:
    record.write_history(tmp_path, ROWS)
    assert repr(record.read_history(tmp_path)) == repr(ROWS)


def test_json_has_no_nan(tmp_path: Path) -> None:
    record.write_json(tmp_path, "summary.json", {"loss": math.nan, "name": "ä"})
    assert record.read_json(tmp_path, "summary.json") == {"loss": None, "name": "ä"}


@pytest.mark.parametrize("text", ["epoch,lr\n1,2\n", "", "epoch\nx\n"])
def test_torn_history_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(ValueError, match="not a history"):
        record.read_history(tmp_path)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    record.write_whole(file, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        record.write_whole(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        record.write_whole(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_reserved_folders_are_never_shared(tmp_path: Path) -> None:
    folders = [record.reserve(tmp_path / "a" / "12-00-00") for _ in range(3)]
    assert [folder.name for folder in folders] == ["12-00-00", "12-00-00-2", "12-00-00-3"]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("-1e-3", "-1e-3"),
        ("adam", "adam"),
        (-1, -1),
    ],
)
def test_a_cell_holds_no_formula(text: object, cell: object) -> None:
    assert record.inert(text) == cell
