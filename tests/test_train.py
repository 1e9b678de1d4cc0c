"""The command as a user meets it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import Command

FOLDER = {
    ".hydra",
    "train.log",
    "history.csv",
    "summary.json",
    "results.png",
    "model.pt",
    "environment.json",
}


def test_run_leaves_a_complete_folder(fmnist_train: Command, small: tuple[str, ...]) -> None:
    outcome = fmnist_train(*small, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert {path.name for path in Path("run").iterdir()} == FOLDER

    said = outcome.out.splitlines()
    assert said[0] == f"Data: 640 training, 10,000 validation, 10,000 test images from {_root()}"
    assert "Model: MLP with 109,386 parameters" in said
    assert "Epoch [1/2]" in said
    assert [line for line in said if line.startswith("Batch [10/20], Loss: ")]
    assert sum(line.startswith("Validation - Loss: ") for line in said) == 2
    assert said[-2].startswith("Final Test Accuracy: ")
    assert said[-1].startswith("Run folder: ")
    logged = Path("run/train.log").read_text()
    assert all(line in logged for line in said)

    rows = list(csv.DictReader(Path("run/history.csv").read_text().splitlines()))
    columns = "epoch lr train_loss train_accuracy val_loss val_accuracy seconds"
    assert list(rows[0]) == [*columns.split(), "val_balanced_accuracy", "val_macro_f1"]
    # Each class has as many validation images.
    assert float(rows[-1]["val_balanced_accuracy"]) == pytest.approx(
        float(rows[-1]["val_accuracy"])
    )
    assert [row["epoch"] for row in rows] == ["1", "2"]
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["state"] == "COMPLETE"
    assert summary["val_accuracy"] == float(rows[-1]["val_accuracy"]) > 0.4
    assert summary["test_accuracy"] != summary["val_accuracy"]
    environment = json.loads(Path("run/environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__.split("+")[0]
    assert environment["threads"] == 1
    assert Path("run/results.png").read_bytes().startswith(b"\x89PNG")


def _root() -> str:
    return os.environ["FMNIST_SWEEP_DATA"]


def test_weights_load_into_a_plain_network(fmnist_train: Command, small: tuple[str, ...]) -> None:
    fmnist_train(*small, "hydra.run.dir=run", "model.hidden=[24]", "model.dropout=0.2")
    layers = nn.Flatten(), nn.Linear(784, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 10)
    network = nn.Sequential(*layers)
    saved = torch.load("run/model.pt", weights_only=True)
    network.load_state_dict(saved)
    assert torch.equal(network[1].weight, saved["1.weight"])


def test_same_command_same_history(fmnist_train: Command, small: tuple[str, ...]) -> None:
    def history(folder: str, *more: str) -> list[dict[str, str]]:
        fmnist_train(*small, "model.dropout=0.3", f"hydra.run.dir={folder}", *more)
        with open(Path(folder, "history.csv")) as rows:
            return [{**row, "seconds": ""} for row in csv.DictReader(rows)]

    first = history("a")
    assert history("b") == first
    assert history("c", "seed=1") != first


def test_published_protocol_validates_on_the_test_images(
    fmnist_train: Command, small: tuple[str, ...]
) -> None:
    outcome = fmnist_train("experiment=seed", *small, "hydra.run.dir=run")
    assert "says nothing about new examples" in outcome.out
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["test_accuracy"] == summary["val_accuracy"]
    assert summary["validation"] == "test"


def test_multirun_never_opens_the_test_images(
    fmnist_train: Command,
    small: tuple[str, ...],
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = tmp_path / "train-only/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for file in (data_root / "FashionMNIST/raw").glob("train-*-ubyte"):
        (raw / file.name).symlink_to(file)
    monkeypatch.setenv("FMNIST_SWEEP_DATA", str(tmp_path / "train-only"))
    outcome = fmnist_train("-m", *small, "optimizer.lr=0.001,0.01", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    for trial in "01":
        summary = json.loads(Path("sweep", trial, "summary.json").read_text())
        assert summary["state"] == "COMPLETE" and summary["test_accuracy"] is None


def test_no_run_is_overwritten(fmnist_train: Command, small: tuple[str, ...]) -> None:
    assert fmnist_train(*small, "hydra.run.dir=run").code == 0
    before = Path("run/history.csv").read_bytes()
    outcome = fmnist_train(*small, "hydra.run.dir=run", "seed=3")
    assert outcome.code == 1 and "never overwritten" in outcome.err
    assert Path("run/history.csv").read_bytes() == before


def test_no_run_of_a_sweep_is_overwritten(fmnist_train: Command, small: tuple[str, ...]) -> None:
    sweep = ("-m", *small, "hydra.sweep.dir=sweep", "hydra/sweeper=basic")
    assert fmnist_train(*sweep, "seed=0").code == 0
    before = Path("sweep/0/history.csv").read_bytes()
    outcome = fmnist_train(*sweep, "seed=1")
    assert outcome.code == 1 and "never overwritten" in outcome.err
    assert Path("sweep/0/history.csv").read_bytes() == before


BAD = {
    "optimizer.lr=-1": "optimizer.lr=-1: must be > 0",
    "optimizer.lr=fast": "optimizer.lr=fast: must be a number > 0",
    "optimizer.lr=nan": "optimizer.lr=nan: must be a finite number > 0",
    "optimizer.lrr=0.1": "optimizer.lrr: no such key; did you mean optimizer.lr?",
    "optimizer.momentum=0.9": "optimizer.momentum: not with this optimizer, which has lr, betas, ",
    "hydra.run.dir=/proc/x": "hydra.run.dir=/proc/x: No such file or directory",
    "+a-b=1": "a-b: no such key",
    "+data.5=1": "data.5: no such key; did you mean data?",
    "modl.x.y=1": "modl: no such key; did you mean model?",
    "hydra.sweeper.n_trils=1": "hydra.sweeper.n_trils: no such key; did you mean "
    "hydra.sweeper.n_trials?",
    "optimizer=adma": "Could not find 'optimizer/adma'",
    "data.batch_size=0": "data.batch_size=0: must be >= 1",
    "data.batch_size=32.5": "data.batch_size=32.5: must be an integer >= 1",
    "data.val_size=60000": "data.val_size=60000: must be less than 60000",
    "data.batch_size=60001": "data.batch_size=60001: must be at most 60000",
    "data.kind=mnst": "data.kind=mnst: must be 'fashion_mnist',",
    "data.train_size=55000": "data.train_size=55000: must be at most 50000",
    "data.classes=[5]": "data.classes=[5]: must be a list of two or more different classes, or ",
    "data.classes=[5,5]": "data.classes=[5, 5]: must be a list of two or more different classes",
    "data.classes=[5,10]": "data.classes=[5, 10]: must be a list of two or more different classes",
    "data.classes=shoes": "data.classes=shoes: must be a list of two or more different classes",
    "model.width=0": "model.width=0: must be >= 1",
    "model.width=1": "model.width=1: must be at least 2 for model.depth=2",
    "model.dropout=1.0": "model.dropout=1.0: must be >= 0 and < 1",
    "model.hidden=[128,0]": "model.hidden=0: must be greater than or equal to 1",
    "model._target_=os.system": "model._target_=os.system: not a trusted target",
    "optimizer._target_=torch.optim.Adma": "optimizer._target_=torch.optim.Adma: ",
    "+optimizer.amsgrad2=1": "optimizer.amsgrad2: Adam takes no such argument",
    "trainer.epochs=0": "trainer.epochs=0: must be >= 1",
    "trainer.device=tpu": "trainer.device=tpu: must be auto, cpu, cuda, cuda:N or mps",
    "trainer.device=cuda:99": "trainer.device=cuda:99: ",
    "trainer.compile=maybe": "trainer.compile=maybe: must be auto, true or false",
    "seed=-1": "seed=-1: must be >= 0",
    "data.batch_size": "data.batch_size",
    "model=resnet18 model.freeze=until:layer9": "model.freeze=until:layer9: must be none, all or",
    "model=resnet18 model.image_size=16": "model.image_size=16: must be",
    "model=vgg11_bn model.weights=nothing.pt": "/nothing.pt: no such file",
    "model=cnn model.width=0": "model.width=0: must be >= 1",
    "model=resnet18 data.train_size=65": "data.batch_size=32: leaves a batch of one of 65 images",
    "model.batch_norm=true data.batch_size=1": "data.batch_size=1: leaves a batch of one",
    "data.batch_size=1 model._target_=torch.nn.modules.linear.Linear": "model._target_=torch.nn",
    "scheduler=step scheduler.every=10": "scheduler.every=10: must be less than trainer.epochs=10",
    "scheduler=warmup_cosine scheduler.warmup_epochs=10": "scheduler.warmup_epochs=10: must be",
    "scheduler=plateau scheduler.factor=1": "scheduler.factor=1: must be > 0 and < 1",
    "scheduler.kind=linear": "scheduler.kind=linear: must be one of constant, cosine, ",
    "scheduler=cosine scheduler.warmup=1": "scheduler.warmup: no such key",
    "augment.flip=1.5": "augment.flip=1.5: must be >= 0 and <= 1",
    "augment.shift=28": "augment.shift=28: must be less than 28",
    "augment.crop=0.0": "augment.crop=0.0: must be > 0 and <= 1",
    "trainer.label_smoothing=1.0": "trainer.label_smoothing=1.0: must be >= 0 and < 1",
    "trainer.average=1.0": "trainer.average=1.0: must be > 0 and < 1",
    "trainer.clip_norm=0.0": "trainer.clip_norm=0.0: must be > 0",
    "trainer.early_stopping.patience=0": "trainer.early_stopping.patience=0: must be >= 1",
    "trainer.early_stopping.metric=loss": "metric=loss: must be 'train_loss',",
    "optimizer=muon optimizer.decay=none": "optimizer.decay=none: must be 'all' or 'matrices'",
}


@pytest.mark.parametrize("override", BAD)
def test_a_mistake_is_one_line_and_leaves_nothing(override: str, fmnist_train: Command) -> None:
    outcome = fmnist_train(*override.split(" "))
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert BAD[override] in line
    assert not list(Path().iterdir())


def test_bf16_where_it_cannot_be_had_is_one_line(
    fmnist_train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    outcome = fmnist_train("trainer.precision=bf16", "trainer.device=cpu")
    assert outcome.code == 1
    assert outcome.err == "trainer.precision=bf16: cpu has no bfloat16; use float32\n"
    assert not list(Path().iterdir())


def test_too_many_images_of_some_classes_is_one_line(fmnist_train: Command) -> None:
    outcome = fmnist_train("data.classes=[1,0]", "data.train_size=10001")
    assert outcome.err.strip() == (
        "data.train_size=10001: must be at most 10000, what data.val_size=10000 leaves of 12000 "
        "training examples of data.classes=[0, 1]"
    )


def test_any_torch_optimizer_by_target(fmnist_train: Command, small: tuple[str, ...]) -> None:
    target = "optimizer._target_=torch.optim.NAdam"
    outcome = fmnist_train(*small, target, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("run/summary.json").read_text())["val_accuracy"] > 0.4


def test_a_model_of_ones_own(
    fmnist_train: Command,
    small: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = tmp_path / "packages"
    package.mkdir()
    package.joinpath("my_models.py").write_text(
        "from torch import nn\n\n\ndef linear(bias):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10, bias=bias))\n"
    )
    monkeypatch.syspath_prepend(str(package))
    own = ("~model", "+model._target_=my_models.linear", "+model.bias=false")
    run = "hydra.run.dir=run"
    refused = fmnist_train(*small, *own, run)
    assert refused.code == 1 and "FMNIST_SWEEP_TRUST" in refused.err
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", "my_models.*")
    assert fmnist_train(*small, *own, run).code == 0
    assert json.loads(Path("run/summary.json").read_text())["parameters"] == 7840


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        ("nn.Linear(784, 7)", "returns [2, 7] for two images, not logits [2, 10]"),
        ("nn.Linear(700, 10)", "cannot be trained: mat1 and mat2"),
    ],
)
def test_an_unfit_model_is_one_line(
    layer: str, what: str, fmnist_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packages"
    package.mkdir()
    name = f"unfit_{abs(hash(layer))}"
    package.joinpath(f"{name}.py").write_text(
        f"from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), {layer})\n"
    )
    monkeypatch.syspath_prepend(str(package))
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", f"{name}.*")
    outcome = fmnist_train("~model", f"+model._target_={name}.net")
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert line.startswith(f"model._target_={name}.net: ") and what in line


def test_divergence_is_told_and_recorded(fmnist_train: Command, small: tuple[str, ...]) -> None:
    outcome = fmnist_train(*small, "optimizer=sgd", "optimizer.lr=1e30", "hydra.run.dir=run")
    assert outcome.code == 1
    assert "the loss became nan in epoch 1" in outcome.err
    summary = json.loads(Path("run/summary.json").read_text())
    assert summary["state"] == "FAILED" and summary["epochs"] == 1
    assert not Path("run/model.pt").exists()


@pytest.mark.parametrize("question", [["--help"], ["--cfg", "job"]])
def test_questions_do_not_import_torch(question: list[str], tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.argv[1:] = sys.argv[1:]\n"
        "try: runpy.run_module('fmnist_sweep.train', run_name='__main__', alter_sys=True)\n"
        "finally: assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", code, *question]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "batch_size" in answer.stdout
    assert not list(tmp_path.iterdir())


def test_the_command_line_names_the_data_whatever_the_variable_says(
    fmnist_train: Command, small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = os.environ["FMNIST_SWEEP_DATA"]
    (tmp_path / "file").touch()
    wrong = fmnist_train(*small, f"data.root={tmp_path}/file/data")
    assert wrong.code == 1 and f"data.root={tmp_path}/file/data: cannot be used" in wrong.err
    monkeypatch.setenv("FMNIST_SWEEP_DATA", f"{tmp_path}/file/data")
    right = fmnist_train(*small, f"data.root={root}", "hydra.run.dir=run", "trainer.compile=false")
    assert right.code == 0, right.err
