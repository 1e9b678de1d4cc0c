"""Sweeps through `hydra/launcher=stacked`: every trial's folder as if it had run alone."""

import json
import logging
import math
import re
import statistics
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import Command

FAST = (
    "data.train_size=640",
    "data.val_size=500",
    "trainer.log_every=10",
    "hydra.launcher.workers=1",
)
NOISE = re.compile(r"^\S+ \S+ |\(\d+\.\d\d s\)$|multirun/\w+", re.MULTILINE)


def history(folder: str) -> pd.DataFrame:
    return pd.read_csv(Path("multirun", folder, "history.csv")).drop(columns="seconds")


def summary(folder: str) -> dict[str, object]:
    values: dict[str, object] = json.loads(Path("multirun", folder, "summary.json").read_text())
    return values


def test_run_folders_are_those_of_trials_run_alone(fmnist_train: Command) -> None:
    swept = ("model.dropout=0.0,0.3", "trainer.epochs=1,3")
    for launcher in ("stacked", "basic"):
        options = FAST if launcher == "stacked" else FAST[:3]
        outcome = fmnist_train(
            "-m", *options, *swept, f"hydra/launcher={launcher}", f"name={launcher}"
        )
        assert outcome.code == 0, outcome.err
    for trial in range(4):
        pd.testing.assert_frame_equal(history(f"stacked/{trial}"), history(f"basic/{trial}"))
        files, logs, configs = [], [], []
        for launcher in ("stacked", "basic"):
            folder = Path("multirun", launcher, str(trial))
            files.append(sorted(str(path.relative_to(folder)) for path in folder.rglob("*")))
            logs.append(NOISE.sub("", (folder / "train.log").read_text()))
            configs.append((folder / ".hydra/config.yaml").read_text().replace(launcher, ""))
        assert files[0] == files[1] and logs[0] == logs[1] and configs[0] == configs[1]
    assert logging.getLogger().handlers is not None
    tables = [pd.read_csv(f"multirun/{name}/curves.csv") for name in ("stacked", "basic")]
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in tables))


def test_a_stack_is_refilled_and_pruned_trials_leave_it(fmnist_train: Command) -> None:
    rates = "optimizer.lr=0.001,0.002,1e-6,0.0015,1e-7"
    pruner = ("hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=2")
    outcome = fmnist_train(
        "-m", *FAST, rates, "trainer.epochs=4", *pruner, "hydra.launcher.max_stack=2", "name=a"
    )
    assert outcome.code == 0, outcome.err
    rows = pd.read_csv("multirun/a/sweep.csv")
    assert list(rows["state"])[:2] == ["COMPLETE"] * 2
    assert set(rows["state"][[2, 4]]) == {"PRUNED"}
    outcome = fmnist_train(
        "-m", *FAST, rates, "trainer.epochs=4", "hydra.launcher.max_stack=1", "name=b"
    )
    assert outcome.code == 0, outcome.err
    for trial, epochs in enumerate(rows["epochs"]):
        alone = history(f"b/{trial}")[:epochs]
        pd.testing.assert_frame_equal(history(f"a/{trial}"), alone)


def test_one_bad_trial_in_a_stack(fmnist_train: Command) -> None:
    swept = "optimizer.lr=0.01,1e30,0.02,0.03"
    outcome = fmnist_train("-m", *FAST, "optimizer=sgd", swept, "trainer.epochs=2", "name=a")
    assert outcome.code == 0, outcome.err
    rows = pd.read_csv("multirun/a/sweep.csv")
    assert list(rows["state"]) == ["COMPLETE", "FAILED", "COMPLETE", "COMPLETE"]
    assert "became" in rows["reason"][1]


@pytest.mark.slow
def test_processes_give_the_same_and_all_end(fmnist_train: Command) -> None:
    swept = ("seed=range(3)", "model.width=32,64", "trainer.epochs=2")
    for name, workers in (("one", 1), ("two", 2)):
        outcome = fmnist_train(
            "-m", *FAST[:3], f"hydra.launcher.workers={workers}", *swept, f"name={name}"
        )
        assert outcome.code == 0, outcome.err
    for trial in range(6):
        pd.testing.assert_frame_equal(history(f"one/{trial}"), history(f"two/{trial}"))


def test_stock_sweepers_launch_stacks(fmnist_train: Command) -> None:
    outcome = fmnist_train(
        "-m", *FAST, "trainer.epochs=1", "hydra/sweeper=basic", "seed=5,6,7", "name=a"
    )
    assert outcome.code == 0, outcome.err
    assert [summary(f"a/{trial}")["seed"] for trial in range(3)] == [5, 6, 7]


def test_repeats_are_runs_of_their_own(fmnist_train: Command) -> None:
    outcome = fmnist_train(
        "-m", *FAST, "repeats=3", "optimizer.lr=0.001,0.01", "trainer.epochs=2", "name=r"
    )
    assert outcome.code == 0, outcome.err
    assert " ± " in outcome.out
    outcome = fmnist_train(
        "-m", *FAST, "optimizer.lr=0.001,0.01", "seed=0,1,2", "trainer.epochs=2", "name=s"
    )
    assert outcome.code == 0, outcome.err
    table = pd.read_csv("multirun/r/sweep.csv")
    assert list(table["repeats"]) == [3, 3]
    for trial in range(2):
        singles = [summary(f"s/{3 * trial + repeat}") for repeat in range(3)]
        for repeat in range(3):
            folder = f"r/{trial}/repeat-{repeat}"
            pd.testing.assert_frame_equal(history(folder), history(f"s/{3 * trial + repeat}"))
            assert summary(folder)["val_accuracy"] == singles[repeat]["val_accuracy"]
            assert Path("multirun", folder, "model.pt").exists()
        values = [float(str(single["val_accuracy"])) for single in singles]
        assert table["objective"][trial] == statistics.fmean(values)
        assert table["objective_std"][trial] == pytest.approx(statistics.stdev(values), rel=1e-12)
        means = history(f"r/{trial}")["val_accuracy"]
        assert means.iloc[-1] == table["objective"][trial] and len(means) == 2


def test_pruning_decides_on_the_mean_of_repeats(fmnist_train: Command) -> None:
    outcome = fmnist_train(
        "-m",
        *FAST,
        "repeats=2",
        "optimizer.lr=0.001,0.002,1e-7",
        "trainer.epochs=4",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=2",
        "hydra.sweeper.n_jobs=2",
        "name=a",
    )
    assert outcome.code == 0, outcome.err
    table = pd.read_csv("multirun/a/sweep.csv")
    assert list(table["state"]) == ["COMPLETE", "COMPLETE", "PRUNED"]
    epochs = table["epochs"][2]
    assert epochs < 4
    assert all(len(history(f"a/2/repeat-{repeat}")) == epochs for repeat in range(2))


def test_repeats_of_a_single_run(fmnist_train: Command) -> None:
    folder = Path("run")
    outcome = fmnist_train(*FAST[:3], "repeats=2", "trainer.epochs=1", f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    row = json.loads((folder / "summary.json").read_text())
    singles = [
        json.loads((folder / f"repeat-{repeat}/summary.json").read_text()) for repeat in range(2)
    ]
    assert row["test_accuracy"] == statistics.fmean(one["test_accuracy"] for one in singles)
    assert row["repeats"] == 2 and math.isfinite(row["test_accuracy_std"])


def test_a_model_that_cannot_be_stacked_trains_alone(
    fmnist_train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "alone_model.py").write_text(
        "from torch import nn\n\n\n"
        "class Branching(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x)\n"
        "        return y if y.sum().item() > 0 else -y\n\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), Branching(784, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", "alone_model.*")
    model = ("~model", "+model._target_=alone_model.net", "trainer.epochs=2", "seed=1,2")
    for launcher in ("stacked", "basic"):
        options = FAST if launcher == "stacked" else FAST[:3]
        outcome = fmnist_train(
            "-m", *options, *model, f"hydra/launcher={launcher}", f"name={launcher}"
        )
        assert outcome.code == 0, outcome.err
    for trial in range(2):
        pd.testing.assert_frame_equal(history(f"stacked/{trial}"), history(f"basic/{trial}"))
        log = Path(f"multirun/stacked/{trial}/train.log").read_text()
        assert log.count("Trains alone, not in a stack: ") == 1


def test_a_launcher_of_processes_divides_the_cores(
    fmnist_train: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    outcome = fmnist_train(*FAST[:3], "trainer.epochs=1", "trainer.threads=7", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("run/environment.json").read_text())["threads"] == 2
