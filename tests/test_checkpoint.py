"""An interrupted run goes on with the same numbers as if it had never stopped."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.locks import FolderLock
from fmnist_sweep.engine import checkpoint
from fmnist_sweep.engine.checkpoint import Checkpoint, CheckpointError
from fmnist_sweep.results import record, run_plot
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.sweep.task import Decision
from fmnist_sweep.task import trial
from fmnist_sweep.task.cli import parsed
from fmnist_sweep.task.config import Config, conf_folder
from tests.conftest import Command

SMALL = ("data.train_size=200", "data.val_size=100", "data.batch_size=40", "trainer.epochs=5")
THAWED = [
    *("model=resnet18", "model.freeze=all"),
    *("data.train_size=20", "data.batch_size=10", "data.val_size=10"),
]
RECIPES = {
    "baseline": [],
    "dropout and augmentation": ["model.dropout=0.3", "augment=standard", "optimizer=adamw"],
    "an average of weights": ["trainer.average=0.9", "scheduler=cosine", "model.batch_norm=true"],
    "momentum on a plateau": ["optimizer=sgd", "scheduler=plateau", "scheduler.min_change=1.0"],
    "early stopping": [
        *("optimizer.lr=0.05", "trainer.early_stopping.patience=2"),
        "trainer.early_stopping.min_change=0.1",
    ],
    "a foreign optimizer": ["optimizer=muon", "scheduler=onecycle", "trainer.clip_norm=0.5"],
    "repeats": ["repeats=3", "model.dropout=0.1"],
    "a convolution": ["model=cnn", "model.width=2", "model.depth=1", "augment=flip_rotate"],
    "still frozen": [*THAWED, "model.unfreeze_after=4"],
    "unfrozen": [*THAWED, "model.unfreeze_after=2"],
}


def config(*overrides: str) -> Config:
    with initialize_config_dir(conf_folder()):
        return parsed(compose("config", [*SMALL, "trainer.checkpoint=true", *overrides]))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMNIST_SWEEP_DATA", str(data_root))


def run(settings: Config, folder: str) -> dict[str, Any]:
    Path(folder).mkdir(exist_ok=True)
    return trial.run(settings, Path(folder), test=False)


def run_until(epoch: int, settings: Config, folder: str) -> None:
    """Ends it as Ctrl-C does, once an epoch is finished."""

    def interrupt(row: Epoch) -> Decision:
        if row.epoch == epoch:
            raise KeyboardInterrupt
        return Decision.CONTINUE

    Path(folder).mkdir(exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        trial.run(settings, Path(folder), test=False, on_epoch=interrupt)


def left(folder: str) -> dict[str, Any]:
    """What a run leaves, without what tells the time."""
    found: dict[str, Any] = {}
    for file in sorted(Path(folder).rglob("history.csv")):
        with open(file) as rows:
            found[str(file.parent.relative_to(folder))] = [
                {key: value for key, value in row.items() if key != "seconds"}
                for row in csv.DictReader(rows)
            ]
    for file in sorted(Path(folder).rglob("model.pt")):
        weights = torch.load(file, weights_only=True)
        found[str(file.relative_to(folder))] = {n: t.tolist() for n, t in weights.items()}
    return found


@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(one, marks=pytest.mark.torture) if RECIPES[one][:2] == THAWED[:2] else one
        for one in RECIPES
    ],
)
def test_interrupted_runs_end_as_if_they_had_not_been(recipe: str) -> None:
    settings = config(*RECIPES[recipe])
    run(settings, "whole")
    run_until(3, settings, "parts")
    assert Path("parts/checkpoint-0.pt").exists() and not Path("parts/summary.json").exists()
    run(settings, "parts")
    assert left("parts") == left("whole")
    assert not list(Path("parts").glob("checkpoint*"))


def test_a_run_does_not_resume_on_other_data() -> None:
    images = np.arange(100 * 36, dtype=np.uint8).reshape(100, 6, 6)
    np.savez("a.npz", x_train=images, y_train=np.arange(100) % 2)
    settings = config("data=arrays", "data.path=a.npz", "data.train_size=50", "data.val_size=20")
    run_until(3, settings, "parts")
    kept = Path("parts/environment.json").read_bytes()
    np.savez("a.npz", x_train=images[::-1], y_train=np.arange(100) % 2)
    with pytest.raises(ConfigError, match="parts: was interrupted while it trained on other data"):
        run(settings, "parts")
    assert Path("parts/environment.json").read_bytes() == kept
    np.savez("a.npz", x_train=images, y_train=np.arange(100) % 2)
    assert run(settings, "parts")["state"] == "COMPLETE"


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["dropout and augmentation", "an average of weights"])
def test_on_a_gpu_too(recipe: str) -> None:
    settings = config("trainer.device=cuda", *RECIPES[recipe])
    run(settings, "whole")
    run_until(3, settings, "parts")
    run(settings, "parts")
    whole, parts = (
        [float(row["train_loss"]) for row in left(folder)["."]] for folder in ("whole", "parts")
    )
    assert parts == pytest.approx(whole, rel=1e-3)


def test_it_goes_on_after_every_epoch_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    settings = config()
    run(settings, "whole")
    for epoch in (1, 2, 4):
        run_until(epoch, settings, "parts")
    caplog.clear()
    run(settings, "parts")
    assert "Resuming after epoch 4" in caplog.text and "Epoch [5/5]" in caplog.text
    assert "Epoch [4/5]" not in caplog.text
    assert left("parts") == left("whole")


def test_a_new_attempt_goes_on_from_the_one_before() -> None:
    settings = config()
    run(settings, "whole")
    run_until(2, settings, "7")
    before = {path: path.read_bytes() for path in Path("7").iterdir()}
    run_until(3, settings, "7-2")
    run(settings, "7-3")
    assert left("7-3") == left("whole")
    assert before == {path: path.read_bytes() for path in Path("7").iterdir()}


@pytest.mark.parametrize("how", ["a bit", "half", "nothing", "text"])
def test_a_damaged_checkpoint_is_told_and_not_gone_on_from(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = config()
    run(settings, "whole")
    run_until(3, settings, "parts")
    file = Path("parts/checkpoint-0.pt")
    content = file.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    file.write_bytes(
        {"a bit": flipped, "half": content[:middle], "nothing": b"", "text": b"{}"}[how]
    )
    run(settings, "parts")
    assert "checkpoint-0.pt is damaged; training begins anew" in caplog.text
    assert left("parts") == left("whole")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "harmed"),))

    kept = Checkpoint(tmp_path / "checkpoint-0.pt", "mine", 0.0)
    kept.write({"history": [], "weights": Harmful()})
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.read(kept.path, "mine")
    assert not (tmp_path / "harmed").exists()


def test_another_configuration_does_not_go_on(
    fmnist_train: Command, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*SMALL, "trainer.checkpoint=true", "hydra.run.dir=parts"]
    run_until(3, config(), "parts")
    before = Path("parts/history.csv").read_bytes()
    for more in ((), ("trainer.checkpoint=false",)):
        refused = fmnist_train(*overrides[:-2], "hydra.run.dir=parts", *more, "optimizer.lr=0.5")
        assert refused.code == 1 and len(refused.err.splitlines()) == 1
        assert "holds an interrupted run of another configuration" in refused.err
    assert Path("parts/history.csv").read_bytes() == before
    assert not Path("parts/.hydra").exists()
    again = fmnist_train(*overrides, "trainer.log_every=7")
    assert again.code == 0, again.err
    assert "Resuming after epoch 3" in again.out


def test_repeats_killed_while_they_are_kept_go_on(
    fmnist_train: Command, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*small[:3], "repeats=2", "trainer.checkpoint=true", "hydra.run.dir=out")

    def kill(*_: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_plot, "curves", kill)
        assert fmnist_train(*command).code == 130
    assert Path("out/repeat-1/summary.json").exists()
    outcome = fmnist_train(*command)
    assert outcome.code == 0 and "Resuming after epoch" in outcome.out, outcome.err
    assert Path("out/summary.json").exists()


def test_without_checkpoints_nothing_is_kept_and_a_run_is_not_overwritten() -> None:
    settings = config("trainer.checkpoint=false")
    run_until(3, settings, "parts")
    assert not list(Path("parts").glob("checkpoint*"))
    with pytest.raises(Exception, match="holds a run already"):
        run(settings, "parts")


def test_auto_takes_at_most_a_fiftieth_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    kept = Checkpoint(tmp_path / "checkpoint-0.pt", "mine", trial.AUTO_CHECKPOINT)
    assert not kept.is_due
    kept.begin(1_000_000)
    now = 59.0
    assert not kept.is_due
    now = 60.0
    assert kept.is_due
    kept.write({"history": []})
    now = 119.0
    assert not kept.is_due
    now = 120.0
    assert kept.is_due
    kept.begin(1_000_000_000)  # of ten seconds
    now += 499
    assert not kept.is_due
    now += 1
    assert kept.is_due


def test_a_run_killed_in_any_place_goes_on(data_root: Path) -> None:
    """SIGKILL, as it comes, again and again until the run is complete."""
    overrides = [*SMALL, "trainer.epochs=30", "trainer.checkpoint=true", "augment=flip"]
    command = [sys.executable, "-m", "fmnist_sweep.train", *overrides, "hydra.run.dir=parts"]
    kills = 0
    for seen in (5, 19, 10**9):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        history = Path("parts/history.csv")
        while child.poll() is None:
            if history.exists() and len(history.read_text().splitlines()) > seen:
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        out, _ = child.communicate()
    assert child.returncode == 0, out.decode()[-2000:]
    run(config("trainer.epochs=30", "augment=flip"), "whole")
    assert left("parts") == left("whole") and kills == 2


@pytest.mark.parametrize("kind", ["baseline", "a foreign optimizer"])
@pytest.mark.parametrize("repeats", [1, 2])
def test_what_would_have_ended_it_still_does(kind: str, repeats: int) -> None:
    """Killed between an epoch's checkpoint and the pruner's word on it."""
    settings = config(*RECIPES[kind], f"repeats={repeats}")
    run_until(3, settings, "parts")
    if repeats > 1:
        Path("parts/checkpoint-0.pt").write_bytes(b"torn")  # it has to catch up with the other
    told = []

    def prune(row: Epoch) -> Decision:
        told.append(row.epoch)
        return Decision.PRUNE if row.epoch == 3 else Decision.CONTINUE

    trial.run(settings, Path("parts"), test=False, on_epoch=prune)
    assert told == ([3] if repeats == 1 else [1, 2, 3])
    Path("whole").mkdir()
    trial.run(settings, Path("whole"), test=False, on_epoch=prune)
    assert record.read_json(Path("parts"), "summary.json")["state"] == "PRUNED"
    assert left("parts")["."] == left("whole")["."]
    if repeats == 1:
        assert left("parts") == left("whole")


def test_a_file_that_is_called_like_a_checkpoint_is_none(
    fmnist_train: Command, small: tuple[str, ...]
) -> None:
    Path("out").mkdir()
    Path("out/checkpoint-best.pt").write_text("mine")
    assert fmnist_train(*small[:3], "hydra.run.dir=out").code == 0
    assert Path("out/checkpoint-best.pt").read_text() == "mine"


def test_a_folder_takes_one_run_at_a_time(fmnist_train: Command, small: tuple[str, ...]) -> None:
    Path("out").mkdir()
    held = FolderLock(Path("out"))
    refused = fmnist_train(*small[:3], "hydra.run.dir=out")
    assert refused.code == 1 and len(refused.err.splitlines()) == 1
    assert "hydra.run.dir=out: another process trains there" in refused.err
    assert not list(Path("out").iterdir())
    del held
    assert fmnist_train(*small[:3], "hydra.run.dir=out").code == 0
