"""A disk that fills up tears nothing: files are whole or absent, and a resume completes."""

import gc
import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from fmnist_sweep.results import record
from fmnist_sweep.sweep import database
from tests.conftest import Command

SWEEP = ("-m", "name=a", "optimizer.lr=0.0001,0.001,0.01", "trainer.epochs=2")
ENOUGH = 1024  # KiB


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of its own, full but for a page until `resize`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", folder])
    if made.returncode:
        pytest.skip("may not mount a file system here")
    monkeypatch.setattr(database, "PATIENCE", 0.2)
    monkeypatch.setattr(database, "SQLITE_WAIT", 0.2)
    try:
        yield folder
    finally:
        database.disconnect()
        os.chdir(tmp_path)
        subprocess.run(["umount", "-l", folder], check=True)


def resize(disk: Path, kib: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kib}k", disk], check=True)


def check_whole(sweep: Path) -> None:
    """Every file of ours can be read to its end."""
    for file in sweep.rglob("*.json"):
        assert isinstance(json.loads(file.read_text()), dict), file
    for file in sweep.rglob("*.csv"):
        text = file.read_text()
        assert text.endswith("\n") and len(pd.read_csv(file).columns) > 5, file
    for file in sweep.rglob("*.png"):
        assert file.read_bytes().endswith(b"IEND\xaeB`\x82"), file
    for file in sweep.glob("report.html"):
        assert file.read_text().rstrip().endswith("</html>"), file
    for file in sweep.glob("study.db"):
        with sqlite3.connect(file) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


SIZES = [
    *(pytest.param(kib, id=f"{kib} KiB") for kib in (16, 120, 136, 200, 260)),
    *(
        pytest.param(kib, id=f"{kib} KiB", marks=pytest.mark.torture)
        for kib in range(4, ENOUGH, 12)
    ),
]


@pytest.mark.parametrize("kib", SIZES)
def test_every_size_of_disk(
    kib: int, disk: Path, tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize(disk, kib)
    monkeypatch.chdir(disk)
    first = tiny(*SWEEP)
    assert "Traceback" not in first.err, first.err
    sweep = disk / "multirun/a"
    full = first.code != 0
    if full:
        assert first.code == 1 and first.err.strip()
    if sweep.exists():
        check_whole(sweep)
        finished = {
            file: file.read_bytes()
            for folder in sweep.glob("[0-9]*")
            if record.summary(folder) and record.summary(folder)["state"] == "COMPLETE"  # type: ignore[index]
            for file in [folder / "summary.json"]
        }
    else:
        finished = {}
    database.disconnect()
    resize(disk, 64 * ENOUGH)
    monkeypatch.setattr(database, "PATIENCE", 20.0)
    again = tiny(*SWEEP)
    assert again.code == 0, again.err
    check_whole(sweep)
    table = pd.read_csv(sweep / "sweep.csv")
    assert list(table.trial) == [0, 1, 2]
    assert {file: file.read_bytes() for file in finished} == finished


@pytest.mark.slow
# Of a job that is broken off Hydra leaves the log open, which ends with the process.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "kib",
    [700, *(pytest.param(kib, marks=pytest.mark.torture) for kib in range(300, 1500, 80))],
)
@pytest.mark.parametrize("launcher", ["stacked", pytest.param("basic", marks=pytest.mark.torture)])
def test_a_trained_model_that_does_not_fit(
    launcher: str,
    kib: int,
    disk: Path,
    fmnist_train: Command,
    small: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trial's model has 430 KiB: it is no fault of the trial's."""
    resize(disk, kib)
    monkeypatch.chdir(disk)
    sweep = ("-m", "name=a", "seed=1,2,3", *small[:3], f"hydra/launcher={launcher}")
    first = fmnist_train(*sweep)
    assert first.code == 1 and "Traceback" not in first.err, first.err
    assert "No space left on device" in first.err or "disk is full" in first.err, first.err
    check_whole(disk / "multirun/a")
    states = [json.loads(file.read_text())["state"] for file in disk.rglob("summary.json")]
    assert set(states) <= {"COMPLETE"}
    database.disconnect()
    resize(disk, 64 * ENOUGH)
    monkeypatch.setattr(database, "PATIENCE", 20.0)
    again = fmnist_train(*sweep)
    assert again.code == 0, again.err
    assert list(pd.read_csv(disk / "multirun/a/sweep.csv").state) == ["COMPLETE"] * 3
    gc.collect()  # the open log complains here, not in a later test


def test_a_single_run_on_a_full_disk(
    disk: Path, fmnist_train: Command, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    resize(disk, 200)
    monkeypatch.chdir(disk)
    outcome = fmnist_train(*small[:3])
    assert outcome.code == 1 and "Traceback" not in outcome.err, outcome.err
    last = outcome.err.splitlines()[-1]
    assert "No space left on device; what has finished is kept" in last, last
