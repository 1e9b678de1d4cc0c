"""What TensorBoard, MLflow and W&B are told, read back with their own readers."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Command


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


def offline_records(file: Path) -> Iterator[bytes]:
    """The records of a file of W&B: LevelDB's log format after seven bytes."""
    content, place, begun = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768  # no header begins in the last six bytes of a block
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        begun += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield begun
            begun = b""


def test_wandb_offline(
    fmnist_train: Command, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    outcome = fmnist_train("-m", *small, "seed=1,2", "logger=wandb", "name=a")
    assert outcome.code == 0, outcome.err
    for trial in "01":
        folder = Path("multirun/a", trial)
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        records = [Record.FromString(data) for data in offline_records(file)]
        run = next(one.run for one in records if one.HasField("run"))
        assert (run.run_group, run.display_name) == ("a", f"trial {trial}")
        assert run.run_id == json.loads((folder / "wandb.json").read_text())["id"]
        config = {item.key: item.value_json for item in run.config.update}
        assert config["seed"] == str(int(trial) + 1)
        rows = [
            {item.key or "".join(item.nested_key): item.value_json for item in one.history.item}
            for one in records
            if one.HasField("history")
        ]
        summary = json.loads((folder / "summary.json").read_text())
        logged = [float(row["val_accuracy"]) for row in rows if "val_accuracy" in row]
        assert len(logged) == 2 and logged[-1] == pytest.approx(summary["val_accuracy"])
    assert (len(list(Path("multirun").rglob("*.wandb"))), "wandb" in outcome.out) == (2, False)


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


def test_wandb_without_a_login_is_one_line(
    small: tuple[str, ...], tmp_path: Path, data_root: Path
) -> None:
    pytest.importorskip("wandb")
    left_out = ("WANDB_API_KEY", "WANDB_MODE")  # W&B reads them once in a process
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "fmnist_sweep.train", *small, "logger=wandb", "hydra.run.dir=run",
         f"data.root={data_root}"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run/train.log").read_text()
    assert log.count("logger=wandb: continues without it: ") == 1 and "Traceback" not in log
    assert (tmp_path / "run/model.pt").exists() and "wandb login" in log


def test_off_by_default_and_not_imported(fmnist_train: Command, small: tuple[str, ...]) -> None:
    trackers = {"mlflow", "tensorboard", "wandb"}
    for name in [name for name in sys.modules if name.split(".")[0] in trackers]:
        del sys.modules[name]
    outcome = fmnist_train(*small, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert not {name.split(".")[0] for name in sys.modules} & trackers
    assert not Path("run/tensorboard").exists()
