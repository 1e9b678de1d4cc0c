"""Run folders: written whole, read back exactly."""

import math
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from fmnist_sweep.base.files import make_unique_dir, write_atomically
from fmnist_sweep.results import record
from fmnist_sweep.results.record import Epoch

ROWS = [
    Epoch(1, 1e-3, 0.1 + 0.2, 1 / 3, 2.5, 0.5, 0.7, 0.2 + 0.1, 0.7 / 3),
    Epoch(2, 1e-4, math.nan, 0.0, 1.0, 1.0, 0.6, 1.0, 1.0),
]


def test_history_keeps_every_digit(tmp_path: Path) -> None:
    record.write_history(tmp_path, ROWS)
    assert repr(record.read_history(tmp_path)) == repr([asdict(row) for row in ROWS])


def test_a_history_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    earlier = [Epoch(1, 1e-3, 0.5, 0.5, 2.5, 0.5, 0.7)]
    record.write_history(tmp_path, earlier)
    assert (tmp_path / "history.csv").read_text().startswith(HEAD)
    assert [Epoch(**row) for row in record.read_history(tmp_path)] == earlier  # type: ignore[arg-type]


def test_json_has_no_nan(tmp_path: Path) -> None:
    record.write_json(tmp_path, "summary.json", {"loss": math.nan, "name": "ä"})
    assert record.read_json(tmp_path, "summary.json") == {"loss": None, "name": "ä"}


HEAD = "epoch,lr,train_loss,train_accuracy,val_loss,val_accuracy,seconds\n"


@pytest.mark.parametrize(
    "text",
    [
        "epoch,lr\n1,2\n",
        "",
        "epoch\nx\n",
        f'{HEAD}"{"1" * 200_000}',
        f"{HEAD}{10**30},1,1,1,1,1,1\n",
    ],
    ids=["columns", "empty", "word", "quote", "epoch"],
)
def test_torn_history_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(record.RecordError, match="not a history"):
        record.read_history(tmp_path)


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    for text in ("{torn", "[" * 10**6, '{"a":' * 10**6, "9" * 5000, "[]"):
        file.write_text(text)
        with pytest.raises(record.RecordError, match=r"not (a )?JSON") as caught:
            record.summary(tmp_path)
        assert "\n" not in str(caught.value)


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "summary.json")
    (tmp_path / "history.csv").symlink_to("/dev/zero")
    with open(tmp_path / "trial.json", "wb") as file:
        file.truncate(10**12)
    for read in (
        lambda: record.summary(tmp_path),
        lambda: record.read_history(tmp_path),
        lambda: record.read_json(tmp_path, "trial.json"),
    ):
        with pytest.raises(record.RecordError, match=r"not a regular file|bytes"):
            read()


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_the_umask_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("other threads' files would meet it"))
    write_atomically(tmp_path / "file", b"x")


def test_reserved_folders_are_never_shared(tmp_path: Path) -> None:
    folders = [make_unique_dir(tmp_path / "a" / "12-00-00") for _ in range(3)]
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
    assert record.escape_csv_formula(text) == cell


def test_earlier_attempts_are_those_that_exist(tmp_path: Path) -> None:
    for name in ("run", "run-2", "run-10", "run-11", "run-x", "runs-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "run-3").write_text("")
    names = [one.name for one in record.earlier_attempts(tmp_path / "run-20261101")]
    assert names == ["run-11", "run-10", "run-2", "run"]
    assert [one.name for one in record.earlier_attempts(tmp_path / "run-10")] == ["run-2", "run"]
    assert record.earlier_attempts(tmp_path / "run") == []
