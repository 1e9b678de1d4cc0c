"""Fixtures: the real data set and the command, run in this process."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from fmnist_sweep import train
from fmnist_sweep.data import source

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real Fashion-MNIST; `make test` has fetched it."""
    return source.locate(ROOT / "data").folder.parent.parent


@dataclass
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def fmnist_train(
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """Runs `python -m fmnist_sweep.train` in an empty folder, on a small real subset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMNIST_SWEEP_DATA", str(data_root))

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        code: object = 0
        message = ""
        capfd.readouterr()
        try:
            train.main()
        except SystemExit as stop:
            code = stop.code
            if isinstance(code, str):
                code, message = 1, code + "\n"
        out, err = capfd.readouterr()
        assert isinstance(code, int | None)
        return Outcome(code or 0, out, err + message)

    return run


SMALL = ("data.train_size=640", "trainer.epochs=2", "trainer.log_every=10")


@pytest.fixture
def small() -> tuple[str, ...]:
    """Overrides for a run of a second: 20 batches, two epochs."""
    return SMALL
