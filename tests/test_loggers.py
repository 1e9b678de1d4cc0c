"""What TensorBoard and MLflow are told, read back with their own readers."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import Command


def test_tensorboard(fmnist_train: Command, small: tuple[str, ...]) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = fmnist_train("-m", *small, "seed=1,2", "logger=tensorboard", "name=a")
    assert outcome.code == 0, outcome.err
    for trial in "01":
        folder = Path("multirun/a", trial)
        told = EventAccumulator(str(folder / "tensorboard"))
        told.Reload()
        summary = json.loads((folder / "summary.json").read_text())
        scalars = told.Scalars("val_accuracy")
        assert [event.step for event in scalars] == [1, 2]
        assert scalars[-1].value == pytest.approx(summary["val_accuracy"], rel=1e-6)
        (final,) = told.Scalars("final/val_accuracy")
        assert final.value == pytest.approx(summary["val_accuracy"], rel=1e-6)
        assert told.Tags()["images"] == ["results"]
        assert any("hparams" in name for name in told.summary_metadata)


def test_mlflow(
    fmnist_train: Command, small: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    store = (tmp_path / "store").as_uri()
    options = ("logger=mlflow", f"logger.uri={store}", "name=a")
    outcome = fmnist_train("-m", *small, "optimizer=sgd", "optimizer.lr=0.01,1e30", *options)
    assert outcome.code == 0, outcome.err
    client = mlflow.MlflowClient(store)
    experiment = client.get_experiment_by_name("fmnist_sweep")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"a", "trial 0", "trial 1"}, Path("multirun/a/0/train.log").read_text()
    good, bad = runs["trial 0"], runs["trial 1"]
    assert {run.data.tags["mlflow.parentRunId"] for run in (good, bad)} == {runs["a"].info.run_id}
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert good.data.params["optimizer.lr"] == "0.01"
    history = client.get_metric_history(good.info.run_id, "val_accuracy")
    summary = json.loads(Path("multirun/a/0/summary.json").read_text())
    assert [metric.step for metric in history] == [1, 2]
    assert history[-1].value == summary["val_accuracy"]
    assert [file.path for file in client.list_artifacts(good.info.run_id)] == ["results.png"]


@pytest.mark.parametrize("kind", ["mlflow", "tensorboard"])
def test_a_backend_that_is_away_is_one_line(
    kind: str, fmnist_train: Command, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "mlflow":
        pytest.importorskip("mlflow")
        options = ["logger.uri=http://127.0.0.1:9"]
    else:
        options = []
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    outcome = fmnist_train("-m", *small, "seed=1,2", f"logger={kind}", *options, "name=a")
    assert outcome.code == 0, outcome.err
    for trial in "01":
        log = Path("multirun/a", trial, "train.log").read_text()
        assert log.count(f"logger={kind}: continues without it: ") == 1 and "Traceback" not in log
        assert (Path("multirun/a") / trial / "model.pt").exists()


def test_off_by_default_and_not_imported(fmnist_train: Command, small: tuple[str, ...]) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("mlflow", "tensorboard")]:
        del sys.modules[name]
    outcome = fmnist_train(*small, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert not {name.split(".")[0] for name in sys.modules} & {"mlflow", "tensorboard"}
    assert not Path("run/tensorboard").exists()
