"""Fixtures: the real data set and the command, run in this process."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fmnist_sweep import report as report_command
from fmnist_sweep import train
from fmnist_sweep.engine.data import DataSplits, Examples
from fmnist_sweep.models.mlp import MLP
from fmnist_sweep.results import publish
from fmnist_sweep.task.data import source
from fmnist_sweep.task.data.fashion import FORMAT
from tests import tiny_task

ROOT = Path(__file__).parent.parent
# Apart from the user's, and kept from session to session.
os.environ["FMNIST_SWEEP_CACHE"] = str(ROOT / ".pytest_cache" / "fmnist_sweep")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real Fashion-MNIST; `make test` has fetched it."""
    return source.locate(os.environ.get("FMNIST_SWEEP_DATA") or ROOT / "data").folder.parent.parent


def mlp(*arguments: Any, **more: Any) -> MLP:
    """A network for Fashion-MNIST."""
    return MLP(*arguments, **more, inputs=FORMAT.shape, classes=FORMAT.classes)


@pytest.fixture(scope="session")
def data() -> DataSplits:
    """200 learnable images; seven batches of 32, the last of eight."""
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(0, 256, (300, 1, 28, 28), dtype=torch.uint8, generator=generator)
    labels = pixels[:, 0, 0, 0].long() * 10 // 256
    pixels[:, 0, :5] = (labels * 25).view(-1, 1, 1).byte()
    train, validation = Examples(pixels[:200], labels[:200]), Examples(pixels[200:], labels[200:])
    return DataSplits(train, validation, None, FORMAT)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A stack's numbers are those of a trial alone, bit for bit, on as many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Outcome:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]
InProcess = Callable[[Callable[[], None]], Command]


@pytest.fixture
def in_process(
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[InProcess]:
    """Turns a command's `main` into a function of its arguments, run in an empty folder."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMNIST_SWEEP_DATA", str(data_root))

    def command(main: Callable[[], None]) -> Command:
        # Commands put streams of their own around them.
        monkeypatch.setattr(sys, "stdout", sys.stdout)
        monkeypatch.setattr(sys, "stderr", sys.stderr)

        def run(*arguments: str) -> Outcome:
            monkeypatch.setattr(sys, "argv", ["command", *arguments])
            code: object = 0
            message = ""
            capfd.readouterr()
            try:
                main()
            except SystemExit as stop:
                code = stop.code
                if isinstance(code, str):
                    code, message = 1, code + "\n"
            out, err = capfd.readouterr()
            assert isinstance(code, int | None)
            return Outcome(code or 0, out, err + message)

        return run

    yield command
    # Hydra leaves handlers behind that write to this test's output.
    for handler in set(root.handlers) - set(before):
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)


@pytest.fixture
def fmnist_train(in_process: InProcess) -> Command:
    """`python -m fmnist_sweep.train`; `small` makes it a run of a second."""
    return in_process(train.main)


@pytest.fixture
def tiny(in_process: InProcess, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The same command around a task that trains nothing, without pictures of it."""
    monkeypatch.setattr(publish, "publish", lambda folder, runs: None)
    return in_process(tiny_task.main)


@pytest.fixture
def report(in_process: InProcess) -> Command:
    """`python -m fmnist_sweep.report`."""
    return in_process(report_command.main)


SMALL = (
    "data.train_size=640",
    "trainer.epochs=2",
    "trainer.log_every=10",
    "hydra.launcher.workers=1",
)


@pytest.fixture
def small() -> tuple[str, ...]:
    """Overrides for a run of a second: 20 batches, two epochs."""
    return SMALL
