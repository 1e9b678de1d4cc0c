"""What a trial costs its sweep beside the training: who composes, draws, syncs and tells."""

import errno
import os
import shutil
import time
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from fmnist_sweep.base import background
from fmnist_sweep.engine import stack, step
from fmnist_sweep.engine.data import DataSplits
from fmnist_sweep.engine.workers import ProcessWorker, Worker
from fmnist_sweep.results import record, run_plot
from fmnist_sweep.sweep import database, hydra_job
from fmnist_sweep.task import build, scheduling
from fmnist_sweep.task.config import Config
from tests.conftest import SMALL, Command
from tests.test_stacks import Case, check_same_as_alone, train

SWEEP = ("-m", *SMALL)


@pytest.mark.parametrize(
    ("swept", "composed"),
    [
        (("optimizer.lr=0.001,1e-2,3.5e-4",), 1),
        (("seed=0,1", "optimizer.lr=0.001,0.01"), 1),
        (("optimizer=adam,sgd", "data.batch_size=32,64"), 2),
        (("model.hidden=[32],[16,8]", "seed=0,1"), 2),
        (("trainer.compile=true,false,auto",), 1),
        (("trainer.clip_norm=null,1.0",), 1),
    ],
)
def test_jobs_take_over_a_configuration_and_get_what_hydra_makes(
    swept: tuple[str, ...], composed: int, tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    compose = hydra_job.compose

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return compose(*arguments)

    monkeypatch.setattr(hydra_job, "compose", counted)
    assert tiny("-m", "name=a", *SMALL, *swept).code == 0
    assert len(calls) == composed
    shutil.move("multirun/a", "taken_over")
    monkeypatch.setattr(hydra_job, "_hears_of_jobs", lambda config: True)
    assert tiny("-m", "name=a", *SMALL, *swept).code == 0
    files = sorted(Path("multirun/a").glob("*/.hydra/*.yaml"))
    n_trials = len(pd.read_csv("multirun/a/sweep.csv"))
    assert len(files) == 3 * n_trials
    for file in files:
        ours = Path("taken_over", *file.parts[2:])
        assert ours.read_text() == file.read_text(), file


class Hears(Callback):
    """Writes a line at the start and at the end of each job."""

    def on_job_start(self, config: Any, **_: Any) -> None:
        self._note("start", config)

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        self._note("end", config)
        assert job_return.return_value is not None

    @staticmethod
    def _note(what: str, config: Any) -> None:
        with open("heard", "a", encoding="utf-8") as file:
            file.write(f"{what} {config.hydra.job.num} {config.optimizer.lr}\n")


@pytest.mark.parametrize("hears", [Callback, Hears])
def test_callbacks_that_want_to_hear_of_jobs_do(hears: type[Callback]) -> None:
    target = f"{hears.__module__}.{hears.__qualname__}"
    config = OmegaConf.create({"hydra": {"callbacks": {"one": {"_target_": target}}}})
    assert hydra_job._hears_of_jobs(config) is (hears is Hears)


def test_no_picture_is_drawn_while_stacks_are_fed(
    fmnist_train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    close, draw, closing = background.Background.close, run_plot.draw, [False]

    def closed(beside: background.Background, seconds: float | None = None) -> int:
        closing[0] = True
        return close(beside, seconds)

    def drawn(*arguments: Any) -> None:
        assert closing[0], "drawn by the process that feeds the stacks"
        draw(*arguments)

    monkeypatch.setattr(background.Background, "close", closed)
    monkeypatch.setattr(run_plot, "draw", drawn)
    outcome = fmnist_train(*SWEEP, "name=a", "optimizer.lr=0.001,0.01")
    assert outcome.code == 0, outcome.err
    for number in (0, 1):
        assert Path(f"multirun/a/{number}/results.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_draws_what_is_missing(
    fmnist_train: Command, report: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fmnist_train(*SWEEP, "name=a", "optimizer.lr=0.001,0.01").code == 0
    picture = Path("multirun/a/1/results.png")
    before = picture.read_bytes()
    picture.unlink()
    assert report("multirun/a").code == 0
    assert picture.read_bytes() == before


def write_process(path: Path) -> None:
    path.write_text(str(os.getpid()))


def fail() -> None:
    raise ValueError


def test_after_a_while_another_process_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "DELAY", 0.0)
    beside = background.Background()
    beside.submit(fail)
    beside.submit(partial(write_process, tmp_path / "process"))
    until = time.monotonic() + 60
    while not (tmp_path / "process").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert int((tmp_path / "process").read_text()) != os.getpid()
    assert beside.close(0) == 0


def begin_and_sleep(path: Path) -> None:
    path.touch()
    time.sleep(60)


def test_an_end_does_not_wait_for_a_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "DELAY", 0.0)
    with background.Background() as beside:
        beside.submit(partial(begin_and_sleep, tmp_path / "begun"))
        beside.submit(partial(write_process, tmp_path / "process"))
        until = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < until:
            time.sleep(0.1)
        process = beside.process
        assert process is not None and process.is_alive()
        began = time.monotonic()
        assert beside.close(0) == 2
    process.join(5)
    assert time.monotonic() - began < 5 and not process.is_alive()


def test_what_is_left_is_done_at_the_end_or_counted(tmp_path: Path) -> None:
    beside = background.Background()
    for piece in (fail, partial(write_process, tmp_path / "process"), fail):
        beside.submit(piece)
    assert not list(tmp_path.iterdir())
    assert beside.close(0) == 3
    assert beside.close(5) == 0
    assert int((tmp_path / "process").read_text()) == os.getpid()


def test_a_trial_syncs_as_often_however_many_epochs_it_has(
    fmnist_train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = [0]
    real = os.fsync

    def fsync(descriptor: int) -> None:
        count[0] += 1
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(record, "HISTORY_SECONDS", 1000.0)
    synced = []
    small = [override for override in SMALL if not override.startswith("trainer.epochs=")]
    for epochs in (2, 12):
        count[0] = 0
        sweep = ("-m", *small, f"trainer.epochs={epochs}", f"name=a{epochs}", "seed=0,1,2")
        assert fmnist_train(*sweep).code == 0
        synced.append(count[0])
    assert synced[0] == synced[1] <= 3 * 8 + 12


def test_the_study_knows_all_epochs_without_a_pruner(fmnist_train: Command) -> None:
    assert fmnist_train(*SWEEP, "name=a", "seed=0,1").code == 0
    url = f"sqlite:///{Path('multirun/a/study.db').absolute()}"
    for trial in database.load(database.Address(url, "a")).trials:
        history = pd.read_csv(f"multirun/a/{trial.number}/history.csv")
        assert trial.intermediate_values == dict(zip(history.epoch, history.val_accuracy))
    database.disconnect()


def test_a_history_is_written_again_if_its_rows_have_changed(tmp_path: Path) -> None:
    history = record.HistoryFile(tmp_path)
    for loss in (1.0, 0.5):  # as the means over more and more repeats do
        history.update([{"step": 1, "loss": loss}])
        history.flush()
        assert record.read_history(tmp_path) == [{"step": 1, "loss": loss}]


def test_an_interrupted_run_keeps_its_epochs(
    fmnist_train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch_ended = step.TrialState.epoch_ended

    def interrupt(row: step.TrialState, metrics: Any) -> None:
        epoch_ended(row, metrics)
        if metrics.epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(step.TrialState, "epoch_ended", interrupt)
    outcome = fmnist_train("data.train_size=640", "trainer.epochs=5", "hydra.run.dir=run")
    assert outcome.code == 130
    assert list(pd.read_csv("run/history.csv").epoch) == [1, 2]


# A stand-in for a GPU: what decides about stacks asks for the device's name only.


@pytest.mark.parametrize(
    ("device", "stack_size", "worker"), [("cpu", 8, ProcessWorker), ("cuda", 256, Worker)]
)
def test_sizes_follow_from_the_device(
    device: str, stack_size: int, worker: type[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "device", lambda config: torch.device(device))
    config: Any = Config.model_construct(trainer=type("Trainer", (), {"threads": 1})())
    scheduler = scheduling.scheduler([config], cores=2)
    assert scheduler.max_stack == stack_size and scheduler.make_worker is worker
    assert scheduler.count == (2 if device == "cpu" else 1)
    assert scheduling.ahead([config], cores=2, has_scheduler=False) == stack_size
    # Trials of a scheduler end soon, and the next learn from them.
    with_scheduler = scheduling.ahead([config], cores=2, has_scheduler=True)
    assert with_scheduler == (2 if device == "cpu" else stack_size)
    assert scheduling.scheduler([config], 2, max_stack=3).max_stack == 3


def test_a_stack_that_does_not_fit_lets_go_of_its_memory(
    data: DataSplits, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    held: list[tuple[int, weakref.ref[torch.Tensor]]] = []
    freed: list[int] = []
    bind = step.StepCache.bind

    def short_of_memory(cache: step.StepCache, tensors: step.StepTensors, full: bool) -> Any:
        rows = len(tensors.weights)
        # When a smaller stack begins, nothing of the larger ones is left but the trials' state.
        alive = [size for size, tensor in held if size > rows and tensor() is not None]
        assert not alive, alive
        run = bind(cache, tensors, full)
        held.append((rows, weakref.ref(tensors.batches)))

        def take_step() -> Any:
            scratch = torch.empty(rows, 1000)
            held.append((rows, weakref.ref(scratch)))
            if rows > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run()

        return take_step

    monkeypatch.setattr(step.StepCache, "bind", short_of_memory)
    monkeypatch.setattr(stack, "free_cached_memory", lambda device: freed.append(1))
    cases = [Case(seed) for seed in range(8)]
    histories, jobs = train(cases, data)
    assert all(len(history) == 2 for history in histories) and freed
    assert "each by itself" not in caplog.text
    monkeypatch.undo()
    check_same_as_alone(cases, histories, jobs, data)


def test_a_full_disk_in_a_history_that_is_due_ends_the_sweep(
    fmnist_train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(record, "write_history", full)
        outcome = fmnist_train(*SWEEP, "name=a", "seed=0,1")
    assert outcome.code == 1 and "No space left on device" in outcome.err
    assert fmnist_train(*SWEEP, "name=a", "seed=0,1").code == 0
    assert set(pd.read_csv("multirun/a/sweep.csv").state) == {"COMPLETE"}
