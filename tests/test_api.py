"""The package from Python: train, sweep, load, compare."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import fmnist_sweep as fs
from fmnist_sweep.engine import functional_model
from fmnist_sweep.engine.data import BYTES_TO_UNIT
from fmnist_sweep.task.config import parse
from fmnist_sweep.task.data import splits
from tests import sweeps
from tests.conftest import ROOT

QUICK = ("data.train_size=640", "data.val_size=500", "trainer.compile=false", "trainer.epochs=2")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FMNIST_SWEEP_DATA", str(data_root))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    found = fs.sweep(*QUICK, "optimizer.lr=0.0001,0.01", "model.dropout=0.1", name="a")
    assert "Sweep folder: multirun/a" in capsys.readouterr().out
    table = pd.read_csv("multirun/a/sweep.csv").set_index("trial")
    assert found.trials["val_accuracy"].to_dict() == table["val_accuracy"].to_dict()
    assert list(found.curves["trial"]) == [0, 0, 1, 1]
    best = found.best
    assert best is not None and best.folder == Path("multirun/a/1")
    assert found.config(1)["optimizer"]["lr"] == 0.01
    assert best.summary["state"] == "COMPLETE" and len(best.curves) == 2
    assert [trial.params for trial in found.study.trials] == [
        {"optimizer.lr": 0.0001}, {"optimizer.lr": 0.01},
    ]  # fmt: skip
    # The model is the one that was evaluated.
    model = found.model(1)
    assert isinstance(model, nn.Module) and not model.training
    config = parse({k: v for k, v in best.config.items() if k != "hydra"} | {"name": None})
    data = splits.load(config.data, torch.device("cpu"), test=False)
    again = functional_model.evaluate(model, data.validation, BYTES_TO_UNIT)
    assert again.accuracy == pytest.approx(best.summary["val_accuracy"], abs=1e-6)


def test_a_single_training_and_its_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    run = fs.train(*QUICK, "optimizer.lr=0.005", quiet=True)
    assert capsys.readouterr().out == ""
    assert run.config["optimizer"]["lr"] == 0.005 and run.curves["epoch"].tolist() == [1, 2]
    assert "val_accuracy" in repr(run)
    with pytest.raises(fs.Error, match=r"optimizer.lr=-1: must be > 0"):
        fs.train("optimizer.lr=-1", quiet=True)
    with pytest.raises(fs.Error, match="nowhere: "):
        fs.load("nowhere")


def written(name: str, *values: float) -> fs.Sweep:
    trials = [
        sweeps.trial(value, params={"optimizer.lr": 0.001 * 2**n, "model.width": 64 * (n % 3 + 1)})
        for n, value in enumerate(values)
    ]
    return fs.load(sweeps.write(Path(name), trials))


def test_pictures_and_tables() -> None:
    found = written("a", *(0.7 + 0.01 * n for n in range(24)))
    drawn = dir(found.plot)
    assert {"curves", "history", "importances", "slices", "parallel", "time"} == set(drawn)
    for name in drawn:
        figure = getattr(found.plot, name)()
        assert isinstance(figure, Figure) and figure.axes
        assert figure._repr_png_()[:4] == b"\x89PNG"  # type: ignore[attr-defined]
    with pytest.raises(fs.Error, match=r"plot.pareto: the sweep has no data for it; it has curves"):
        found.plot.pareto()
    html = found._repr_html_()
    assert html.count("<tr") == 21 + 1 and "The best 20 of 24 trials" in html
    assert "reason" not in html


def test_a_comparison() -> None:
    one, other = written("a", 0.70, 0.72, 0.74), written("b", 0.80, 0.82, 0.84)
    found = fs.compare(one, other)
    assert [sweep["name"] for sweep in found.findings["sweeps"]] == ["a", "b"]
    printed = subprocess.run(
        [sys.executable, "-m", "fmnist_sweep.compare", "a", "b", "--format", "json"],
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert json.loads(json.dumps(found.findings, default=str)) == json.loads(printed)
    assert str(found).startswith("# a and b") and found.figure()[:4] == b"\x89PNG"
    assert str(fs.compare("a", Path("b/sweep.csv"))).startswith("# a and b")


@pytest.mark.parametrize("first", ["", "import fmnist_sweep.train, fmnist_sweep.sweep.task; "])
def test_importing_is_light_and_the_names_are_modules_too(first: str) -> None:
    code = (
        f"{first}import sys, fmnist_sweep as fs; from fmnist_sweep.sweep import report\n"
        "assert not {'torch', 'optuna', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert callable(fs.train) and callable(fs.sweep) and callable(fs.compare)\n"
        "assert fs.sweep.report is report and fs.train.main\n"
        "try:\n    fs.load('nowhere')\nexcept fs.Error as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "nowhere" in done.stdout


def test_hydras_compose_takes_the_configuration() -> None:
    from hydra import compose, initialize_config_dir

    from fmnist_sweep.task.cli import parsed
    from fmnist_sweep.task.config import conf_folder

    with initialize_config_dir(conf_folder()):
        config = compose("config", ["model=cnn", "optimizer.lr=0.02"])
    assert parsed(config).optimizer.lr == 0.02


@pytest.mark.slow
def test_the_notebook() -> None:
    # Some of Jupyter's dependencies warn when they are imported.
    code = (
        "import nbformat, nbclient\n"
        f"notebook = nbformat.read({str(ROOT / 'docs/notebook.ipynb')!r}, as_version=4)\n"
        "nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3').execute()\n"
        "nbformat.write(notebook, 'run.ipynb')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cells = json.loads(Path("run.ipynb").read_text())["cells"]
    shown = json.dumps([output for cell in cells for output in cell.get("outputs", [])])
    assert shown.count("<table") >= 3 and "image/png" in shown and "text/markdown" in shown
    assert "optimizer.lr=-1: must be > 0" in shown and "MLP(" in shown
