"""Training on a CUDA device, beside the same trials on the CPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from fmnist_sweep.engine import training_jobs
from fmnist_sweep.engine.data import DataSplits, Examples
from fmnist_sweep.engine.step import Trial
from fmnist_sweep.engine.training_jobs import TrainingJob
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.task.data.fashion import FORMAT
from tests.conftest import ROOT, Command
from tests.test_stacks import MIXED, Case, check_bf16, train

pytestmark = pytest.mark.gpu
CUDA = ("trainer.device=cuda", "data.train_size=640")


@pytest.fixture(scope="module")
def there(data: DataSplits) -> DataSplits:
    """The same images on the device."""
    train, validation = (
        Examples(part.inputs.cuda(), part.labels.cuda()) for part in (data.train, data.validation)
    )
    return DataSplits(train, validation, None, FORMAT, device=torch.device("cuda"))


def check_near(ours: list[list[Epoch]], cases: list[Case], data: DataSplits) -> None:
    """Rounding differs between the devices, and training enlarges what differs."""
    expected, _ = train(cases, data)
    for case, mine, theirs in zip(cases, ours, expected, strict=True):
        assert len(mine) == len(theirs)
        pairs = [(a.train_loss, b.train_loss) for a, b in zip(mine, theirs)]
        assert [a for a, _ in pairs] == pytest.approx(
            [b for _, b in pairs], rel=0.01, nan_ok=True
        ), case


@pytest.mark.parametrize("max_stack", [1, 16])
def test_stacks_are_near_those_of_a_cpu(
    max_stack: int, data: DataSplits, there: DataSplits
) -> None:
    # Where a step's result hangs by a rounding error the curves part soon.
    cases = [case for case in MIXED if case.lr < 1 and case.optimizer is not torch.optim.Muon]
    check_near(train(cases, there, max_stack=max_stack)[0], cases, data)


def test_compiled_steps_too(data: DataSplits, there: DataSplits) -> None:
    cases = [Case(seed, 3, dropout=0.1 * seed) for seed in range(1, 4)]
    check_near(train(cases, there, max_stack=4, compile=True)[0], cases, data)


def test_bf16(there: DataSplits) -> None:
    check_bf16(there)


class Constant(nn.Sequential):
    """Copies a number to the device in each step, which no recording of a step allows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = super().forward(x)
        return y * torch.tensor([2.0]).to(y.device)


def test_a_step_that_cannot_be_recorded(
    data: DataSplits, there: DataSplits, caplog: pytest.LogCaptureFixture
) -> None:
    def losses(data: DataSplits) -> list[float]:
        torch.manual_seed(0)
        model = Constant(nn.Flatten(), nn.Linear(784, 10))
        history: list[Epoch] = []
        trial = Trial(model, torch.optim.Adam, {"lr": 0.001}, 0, 2)
        job = TrainingJob(trial, data, 32, False, False, 5, 1, history.append, lambda _: None)
        training_jobs.train([job])
        return [row.train_loss for row in history]

    assert losses(there) == pytest.approx(losses(data), rel=1e-3)
    assert caplog.text.count("kernel by kernel") == 1


def test_a_stack_that_does_not_fit_is_halved(
    there: DataSplits, caplog: pytest.LogCaptureFixture
) -> None:
    cases = [Case(seed, 2, width=512) for seed in range(64)]
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    used = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((used + 5e8) / total)
    try:
        histories, _ = train(cases, there, max_stack=64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert all(len(history) == 2 for history in histories)
    assert "trying halves" in caplog.text and "each by itself" not in caplog.text


def test_a_single_run(fmnist_train: Command) -> None:
    outcome = fmnist_train(*CUDA, "trainer.epochs=2", "hydra.run.dir=run", "trainer.compile=true")
    assert outcome.code == 0, outcome.err
    environment = json.loads(Path("run/environment.json").read_text())
    assert environment["device"].startswith("cuda") and environment["device_name"]
    weights = torch.load("run/model.pt", weights_only=True)
    assert all(tensor.device.type == "cpu" for tensor in weights.values())


@pytest.mark.parametrize(
    "options",
    [
        ("model=cnn", "augment=standard", "trainer.precision=bf16"),
        ("model=resnet18", "scheduler=onecycle", "trainer.compile=false"),
        ("optimizer=muon", "trainer.average=0.9"),
    ],
)
def test_other_networks_and_optimizers(options: tuple[str, ...], fmnist_train: Command) -> None:
    outcome = fmnist_train(*CUDA, *options, "trainer.epochs=2", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert len(pd.read_csv("run/history.csv")) == 2


def test_a_sweep_with_pruning_and_a_bad_trial(fmnist_train: Command) -> None:
    outcome = fmnist_train(
        *("-m", *CUDA, "trainer.epochs=4", "name=a", "hydra.launcher.max_stack=16"),
        *("optimizer=sgd", "optimizer.lr=0.01,0.02,0.04,1e-8,1e30", "hydra.sweeper.n_jobs=2"),
        *("hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=2"),
    )
    assert outcome.code == 0, outcome.err
    states = list(pd.read_csv("multirun/a/sweep.csv").sort_values("trial").state)
    assert states[:2] + states[3:] == ["COMPLETE", "COMPLETE", "PRUNED", "FAILED"]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_sweep_of_processes(precision: str, data_root: Path, tmp_path: Path) -> None:
    """They are forked, and the sweep's own has looked for a device."""
    options = (CUDA[1], "trainer.epochs=2", f"trainer.precision={precision}", "seed=1,2")
    for device in ("cuda", "auto"):
        where = (f"trainer.device={device}", "hydra/launcher=basic", f"name={device}")
        command = [sys.executable, "-m", "fmnist_sweep.train", "-m", *options, *where]
        outcome = subprocess.run(
            [*command, f"data.root={data_root}"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert outcome.returncode == 0, outcome.stderr
        table = pd.read_csv(tmp_path / f"multirun/{device}/sweep.csv")
        assert list(table.state) == ["COMPLETE"] * 2


def test_repeats_of_a_request_agree(there: DataSplits) -> None:
    case = replace(MIXED[0], epochs=3)
    (first,), _ = train([case], there)
    (again,), _ = train([case], there)
    assert first == again
