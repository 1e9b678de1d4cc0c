"""`from=FOLDER`: the configuration of an earlier run, with overrides on top."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests import sweeps
from tests.conftest import Command

QUICK = ("data.train_size=640", "data.val_size=500", "trainer.compile=false", "trainer.epochs=2")


def losses(folder: str) -> list[float]:
    values: list[float] = pd.read_csv(f"{folder}/history.csv")["val_loss"].tolist()
    return values


def config(folder: str) -> dict[str, dict[str, object]]:
    values: dict[str, dict[str, object]] = yaml.safe_load(
        Path(folder, ".hydra/config.yaml").read_text()
    )
    return values


def test_a_trial_again(fmnist_train: Command) -> None:
    grid = ("-m", *QUICK, "name=a", "optimizer=adam,sgd", "scheduler=cosine", "seed=3")
    more = ("augment=flip", "model.hidden=[64,32]", "optimizer.lr=0.01", "scheduler.per=epoch")
    outcome = fmnist_train(*grid, *more)
    assert outcome.code == 0, outcome.err
    for trial in (0, 1):
        again = fmnist_train(f"from=multirun/a/{trial}", f"hydra.run.dir=again{trial}")
        assert again.code == 0, again.err
        assert f"from=multirun/a/{trial}: " in again.err
        assert losses(f"again{trial}") == losses(f"multirun/a/{trial}")
    # A single run, with other values on top.
    changed = fmnist_train("from=again1", "seed=4", "optimizer=adamw", "hydra.run.dir=changed")
    assert changed.code == 0, changed.err
    found = config("changed")
    assert (found["seed"], found["model"]["hidden"]) == (4, [64, 32])
    assert found["optimizer"]["_target_"] == "torch.optim.AdamW"
    assert found["optimizer"]["lr"] == 0.001  # that of the new optimizer
    # A sweep around it.
    around = fmnist_train("-m", "from=multirun/a/1", "optimizer.lr=0.02,0.01", "name=b")
    assert around.code == 0, around.err
    assert losses("multirun/b/1") == losses("multirun/a/1")
    assert losses("multirun/b/0") != losses("multirun/b/1")


def test_a_runs_configuration_is_no_folder_of_options(fmnist_train: Command) -> None:
    folder = Path("multirun/a/3/.hydra")
    folder.mkdir(parents=True)
    for name in ("config", "hydra", "overrides"):
        (folder / f"{name}.yaml").write_text("{}")
    for way in ((f"--config-dir={folder}",), ("-cd", str(folder))):
        outcome = fmnist_train(*way, "--config-name", "config")
        assert outcome.code == 1
        assert "from=multirun/a/3 takes it over" in outcome.err


def test_a_sweep_is_its_best_trial_or_its_confirmed_winner(fmnist_train: Command) -> None:
    values = [{"optimizer.lr": rate} for rate in (0.001, 0.002, 0.003)]
    trials = [sweeps.trial(value, params=params) for value, params in zip((0.7, 0.9, 0.8), values)]
    sweeps.write(Path("multirun/a"), trials)
    assert fmnist_train("from=multirun/a", *QUICK, "hydra.run.dir=best").code == 0
    assert config("best")["optimizer"]["lr"] == 0.002
    winner = {"candidates": [{"name": "trial-2"}, {"name": "trial-1"}]}
    Path("multirun/a/confirm.json").write_text(json.dumps(winner))
    assert fmnist_train("from=multirun/a", *QUICK, "hydra.run.dir=winner").code == 0
    assert config("winner")["optimizer"]["lr"] == 0.003


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("from=nowhere",), "from=nowhere: holds neither a run nor a sweep"),
        (("from=.",), "from=.: holds neither a run nor a sweep"),
        (("from=a", "from=b"), "from=a from=b: only one configuration"),
        (("from=empty",), r"from=empty: .*no trial has a result"),
        (("from=torn",), r"torn/.hydra/config.yaml: no configuration"),
    ],
)
def test_what_cannot_be_taken_over(
    arguments: tuple[str, ...], message: str, fmnist_train: Command
) -> None:
    sweeps.write(Path("empty"), [sweeps.trial(None, "FAILED", reason="it failed")])
    Path("torn/.hydra").mkdir(parents=True)
    Path("torn/.hydra/config.yaml").write_text("[]")
    outcome = fmnist_train(*arguments)
    assert outcome.code == 1
    assert re.search(message, outcome.err), outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
