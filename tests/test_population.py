"""Population-based training: who copies whom, the lineage on record, and the schedule it leaves."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from fmnist_sweep import confirm as confirm_command
from fmnist_sweep.engine.data import DataSplits
from fmnist_sweep.engine.step import Hyperparameters
from fmnist_sweep.engine.training_jobs import JobScheduler, TrainingJob
from fmnist_sweep.engine.workers import ProcessWorker, Worker
from fmnist_sweep.results import lineage, page
from fmnist_sweep.results.lineage import Descent
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.results.tables import Sweep
from fmnist_sweep.sweep.pbt import Pbt, Range
from tests.conftest import Command, InProcess
from tests.test_any_app import STUDY, Shell, app, write
from tests.test_engine import job, train, trial

__all__ = ["app"]  # a fixture

SPACE: dict[str, Range] = {
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "dropout": FloatDistribution(0.1, 0.5),
    "shift": IntDistribution(1, 6),
}
PBT = "hydra/sweeper/scheduler=pbt"
EPOCHS, INTERVAL, TRIALS = 5, 2, 5
SEARCH = (
    "-m",
    "search=pbt",
    f"hydra.sweeper.n_trials={TRIALS}",
    f"hydra.sweeper.scheduler.interval={INTERVAL}",
    f"trainer.epochs={EPOCHS}",
    "data.train_size=640",
    "data.val_size=500",
    "trainer.compile=false",
)


def pbt(**more: float) -> Pbt:
    values = {"interval": 2, "quantile": 0.25, "resample": 0.25, "step": 0.1, **more}
    return Pbt(kind="pbt", **values)  # type: ignore[arg-type]


@given(
    st.lists(st.floats(allow_infinity=False, allow_subnormal=False), min_size=2, max_size=20),
    st.floats(0.01, 0.5, allow_subnormal=False),
    st.integers(0, 10),
)
@settings(deadline=None)
def test_the_worst_copy_the_best(scores: list[float], quantile: float, seed: int) -> None:
    values = {n: {"lr": 0.001, "dropout": 0.2, "shift": 2} for n in range(len(scores))}
    found = pbt(quantile=quantile).exchange(
        dict(enumerate(scores)), values, SPACE, np.random.default_rng(seed)
    )
    count = max(1, int(quantile * len(scores)))
    order = sorted(
        range(len(scores)), key=lambda n: -math.inf if math.isnan(scores[n]) else scores[n]
    )
    limit = [-math.inf if math.isnan(scores[n]) else scores[n] for n in order]
    assert len(found) == count == len({copy.target for copy in found})
    for copy in found:
        target, source = (
            -math.inf if math.isnan(scores[n]) else scores[n] for n in (copy.target, copy.source)
        )
        assert target <= limit[count - 1] and source >= limit[-count]
        assert copy.source not in {other.target for other in found}


def test_values_move_by_a_share_of_their_range() -> None:
    start = {"lr": 1e-3, "dropout": 0.3, "shift": 3}
    moved = [
        pbt(resample=0, step=0.25)
        .exchange({0: 0.0, 1: 1.0}, {0: start, 1: start}, SPACE, np.random.default_rng(seed))[0]
        .values
        for seed in range(30)
    ]
    ups_and_downs = {
        "lr": {1e-3 * 10**0.5, 1e-3 / 10**0.5},
        "dropout": {0.2, 0.4},
        "shift": {2, 4},  # 3 ± 1.25, rounded
    }
    for key, expected in ups_and_downs.items():
        found = {round(values[key], 9) for values in moved}
        assert found == {round(value, 9) for value in expected}
    assert all(isinstance(values["shift"], int) for values in moved)


def test_values_drawn_anew_fill_their_range() -> None:
    start = {"lr": 1e-4, "dropout": 0.1, "shift": 1}
    drawn = [
        pbt(resample=1)
        .exchange({0: 0.0, 1: 1.0}, {0: start, 1: start}, SPACE, np.random.default_rng(seed))[0]
        .values
        for seed in range(400)
    ]
    assert np.median([values["lr"] for values in drawn]) == pytest.approx(1e-3, rel=0.3)
    assert np.mean([values["dropout"] for values in drawn]) == pytest.approx(0.3, abs=0.02)
    assert {values["shift"] for values in drawn} == {1, 2, 3, 4, 5, 6}


def test_the_winner_descends_from_its_sources() -> None:
    rows = [
        *(Descent(0, n, None, {"lr": 0.1 * (n + 1)}) for n in range(3)),
        Descent(2, 0, 2, {"lr": 0.5}),
        Descent(4, 1, 0, {"lr": 0.6}),
        Descent(6, 0, 1, {"lr": 0.7}),
    ]
    assert lineage.schedule(rows, 0) == {
        1: {"lr": pytest.approx(0.3)},
        3: {"lr": 0.5},
        5: {"lr": 0.6},
        7: {"lr": 0.7},
    }
    assert lineage.schedule(rows, 2) == {1: {"lr": pytest.approx(0.3)}}
    path = [p[:3] for p in lineage.pieces(rows, 8, 0) if p.is_winners]
    assert path == [(2, 0, 2), (0, 2, 4), (1, 4, 6), (0, 6, 8)]
    total = sum(piece.ended - piece.began for piece in lineage.pieces(rows, 8, 0))
    assert total == 3 * 8


@pytest.mark.parametrize("worker", [Worker, ProcessWorker])
def test_a_copy_continues_from_its_source(
    worker: type[Worker], data: DataSplits, one_thread: None
) -> None:
    rows: dict[str, list[Epoch]] = {"source": [], "target": []}
    jobs: dict[str, TrainingJob] = {}

    def take(name: str, row: Epoch) -> None:
        rows[name].append(row)
        jobs[name].hold = row.epoch == 1

    for seed, name in enumerate(rows):
        jobs[name] = job(trial(seed, epochs=2), data, on_epoch=partial(take, name))
    source, target = jobs.values()
    with JobScheduler(worker, count=2, max_stack=1) as scheduler:
        scheduler.add(source)
        scheduler.add(target)
        while not (source.hold and target.hold):
            scheduler.step()
        # From here on it hardly changes: it stays what its source was.
        still = Hyperparameters({"lr": 1e-12}, target.trial.recipe, {})
        scheduler.copy(source, target, replace(target.trial, changes=[(2, still)]))
        source.hold = target.hold = False
        while not (source.ended and target.ended):
            scheduler.step()
    assert [row.epoch for row in rows["target"]] == [1, 2]
    assert rows["target"][1].val_loss == pytest.approx(rows["source"][0].val_loss, rel=1e-6)
    assert rows["target"][0].val_loss != pytest.approx(rows["source"][0].val_loss, rel=1e-6)
    ((_, alone),) = train([trial(0, epochs=2)], data)
    assert replace(rows["source"][1], seconds=0) == alone


def histories(name: str) -> dict[int, pd.DataFrame]:
    """The curves of each trial."""
    table = pd.read_csv(f"multirun/{name}/curves.csv").drop(columns=["seconds"])
    return {int(n): rows.reset_index(drop=True) for n, rows in table.groupby("trial")}


def assert_equal(one: str, other: str) -> None:
    first, second = (Path("multirun", name, "lineage.csv") for name in (one, other))
    assert first.read_text() == second.read_text()
    theirs = histories(other)
    for number, table in histories(one).items():
        pd.testing.assert_frame_equal(table, theirs[number], check_exact=True)


def test_a_population(fmnist_train: Command, in_process: InProcess, report: Command) -> None:
    outcome = fmnist_train(*SEARCH, "name=a", "hydra.launcher.workers=1")
    assert outcome.code == 0, outcome.err
    rows = lineage.read(Path("multirun/a"))
    curves = histories("a")
    assert [row.trial for row in rows if row.copied is None] == list(range(TRIALS))
    for epoch in (2, 4):
        (copy,) = [row for row in rows if row.epoch == epoch]
        best_first = sorted(curves, key=lambda n: (-curves[n]["val_accuracy"][epoch - 1], n))
        assert (copy.trial, copy.copied) == (best_first[-1], best_first[0])
        # The learning rate of each epoch is on record in the history too.
        assert curves[copy.trial]["lr"][epoch] == pytest.approx(copy.values["optimizer.lr"])
    assert not Path("multirun/a/population.pt").exists()

    # A trial that copied nobody is what the same configuration is outside of a population.
    alone = next(
        n for n in curves if n not in {row.trial for row in rows if row.copied is not None}
    )
    keys = [f"{key}={value!r}" for key, value in rows[alone].values.items()]
    fixed = (*SEARCH[4:], *keys, "hydra.run.dir=alone")
    assert fmnist_train(*fixed).code == 0
    own = pd.read_csv("alone/history.csv")
    assert own["val_loss"].tolist() == curves[alone]["val_loss"].tolist()

    # The same on two workers.
    assert fmnist_train(*SEARCH, "name=b", "hydra.launcher.workers=2").code == 0
    assert_equal("a", "b")

    # The page and the pictures show it.
    sweep = Sweep(Path("multirun/a"))
    sweep.update()
    runs = [run for _, run in sorted(sweep.runs.items())]
    shown = page.content(Path("multirun/a"), runs, {})["lineage"]
    assert [copy[:2] for copy in shown["copies"]] == [
        [row.epoch, row.trial] for row in rows[TRIALS:]
    ]
    assert {key["key"] for key in shown["keys"]} == set(rows[0].values)
    assert Path("multirun/a/plots/lineage.png").stat().st_size > 10_000
    assert not Path("multirun/a/plots/slices.png").exists()

    # Its best trial is confirmed as a schedule.
    best = pd.read_csv("multirun/a/sweep.csv")["trial"][0]
    schedule = lineage.schedule(rows, int(best))
    confirm = in_process(confirm_command.main)
    outcome = confirm("multirun/a", "--top", "1", "--seeds", "2")
    assert outcome.code == 0, outcome.err
    written = yaml.safe_load(Path("multirun/a/confirm.json").read_text())
    (winner,) = [one for one in written["candidates"] if not one["baseline"]]
    assert winner["params"] == schedule.pop(1)
    runs_of_winner = list(Path("multirun/a/confirm").glob("trial-*"))
    config = yaml.safe_load((runs_of_winner[0] / ".hydra/config.yaml").read_text())
    if schedule:
        assert config["scheduler"] == {"kind": "piecewise", "changes": schedule}
    again = fmnist_train("--config-dir", "multirun/a", "experiment=best", "hydra.run.dir=again")
    assert again.code == 0, again.err


def test_a_changed_schedule_is_what_training_in_two_parts_is(fmnist_train: Command) -> None:
    keys = (
        "data.train_size=640",
        "data.val_size=500",
        "trainer.compile=false",
        "model.dropout=0.2",
    )
    changes = "{3: {optimizer.lr: 0.0002, optimizer.weight_decay: 0.001, model.dropout: 0.4}}"
    whole = fmnist_train(
        *keys, "trainer.epochs=4", "scheduler=piecewise", f"scheduler.changes={changes}",
        "hydra.run.dir=whole",
    )  # fmt: skip
    assert whole.code == 0, whole.err
    assert fmnist_train(*keys, "trainer.epochs=4", "hydra.run.dir=constant").code == 0
    changed, constant = (pd.read_csv(f"{n}/history.csv") for n in ("whole", "constant"))
    assert changed["val_loss"][:2].tolist() == constant["val_loss"][:2].tolist()
    assert changed["val_loss"][2] != constant["val_loss"][2]
    assert changed["lr"].tolist() == [0.001, 0.001, 0.0002, 0.0002]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hydra.sweeper.n_trials=1",), r"n_trials=1: a population has at least two trials"),
        (("hydra.sweeper.scheduler.quantile=0.6",), r"quantile=0.6: must be > 0 and <= 0.5"),
        (("hydra.sweeper.scheduler.interval=5",), r"its first decision .* comes after 5"),
        (("model.width=range(16,64,16)",), r"model.width: cannot change"),
        (("data.batch_size=choice(16,32)",), r"data.batch_size: cannot change in mid-training"),
        (("optimizer.lr=0.01,0.1",), r"optimizer.lr: .*give interval\(low, high\)"),
        (("model.dropout=interval(0,0.5)",), r"model.dropout, from 0 to 0.5: .*another one"),
        (("scheduler=cosine",), r"scheduler=cosine: .*use constant"),
        (("trainer.early_stopping.patience=3",), r"early_stopping.patience=3: .*use null"),
        (("repeats=2",), r"repeats=2: .*use 1"),
        (("optimizer=muon",), r"needs adam, adamw"),
        (("hydra/launcher=basic",), r"use hydra/launcher=stacked"),
        (("hydra.sweeper.n_jobs=2",), r"n_jobs=2: .*all 5 trials side by side"),
        (("hydra.sweeper.objective=[val_loss,val_accuracy]",), r"=pbt: decides on a single"),
        (("hydra/sweeper/pruner=median",), r"choose none for one of them"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_population(
    arguments: tuple[str, ...], message: str, fmnist_train: Command
) -> None:
    outcome = fmnist_train(*SEARCH, "name=a", *arguments)
    assert outcome.code == 1
    assert re.search(message, outcome.err), outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not Path("multirun/a").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("{2: {model.width: 64}}", r"changes\[2\]: model.width cannot change in mid-training"),
        ("{20: {optimizer.lr: 0.1}}", r"epoch 20 must not lie beyond trainer.epochs=5"),
        ("{1: {optimizer.lr: 0.1}}", r"scheduler.changes=1: must be epochs from 2 on"),
        ("{2: {optimizer.lr: -1}}", r"changes\[2\]: optimizer.lr=-1: must be > 0"),
        ("{2: {optimizer.lrr: 0.1}}", r"changes\[2\]: optimizer.lrr: Adam takes no such argument"),
        ("{2: {trainer.label_smoothing: 0.1}}", r"cannot take these values in mid-training"),
        ("3", r"must be epochs from 2 on, each with numbers by key"),
    ],
)
def test_what_no_schedule_can_change(changes: str, message: str, fmnist_train: Command) -> None:
    outcome = fmnist_train(
        "scheduler=piecewise", f"scheduler.changes={changes}", "trainer.epochs=5"
    )
    assert outcome.code == 1
    assert re.search(message, outcome.err), outcome.err


def test_another_application_is_refused(tmp_path: Path, app: Shell) -> None:
    write(tmp_path, "return cfg.lr")
    outcome = app(*STUDY, PBT, "lr=interval(0.1,1)", "hydra.sweeper.n_trials=4")
    assert outcome.returncode == 1
    assert "needs an application whose trials take other values" in outcome.stderr


def _killed(arguments: tuple[str, ...], environment: Mapping[str, str], after: float) -> bool:
    """Starts the command and kills it after some seconds; returns whether it had ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fmnist_sweep.train", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(after)
        return True
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return False


def _seconds(arguments: tuple[str, ...], environment: Mapping[str, str]) -> float:
    began = time.monotonic()
    assert _killed(arguments, environment, after=300)
    return time.monotonic() - began


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, pytest.param(200, marks=pytest.mark.torture)])
def test_killed_and_resumed(
    kills: int, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "FMNIST_SWEEP_DATA": str(data_root)}
    search = (*SEARCH, "trainer.checkpoint=true")
    whole = _seconds((*search, "name=whole"), environment)
    generator = np.random.default_rng(0)
    left, name = kills, 0
    while left:
        name += 1
        while left and not _killed(
            (*search, f"name=k{name}"), environment, generator.uniform(0.3, 0.9) * whole
        ):
            left -= 1
        assert _killed((*search, f"name=k{name}"), environment, after=300)
        assert_equal("whole", f"k{name}")
    states = json.loads(Path("multirun/k1/0/trial.json").read_text())
    assert states["trial"] == 0


def test_paused_by_a_timeout(fmnist_train: Command) -> None:
    assert fmnist_train(*SEARCH, "name=whole").code == 0
    search = (*SEARCH, "name=a", "trainer.checkpoint=true")
    first = fmnist_train(*search, "hydra.sweeper.timeout=4")
    assert first.code == 0, first.err
    last = fmnist_train(*search, "hydra.sweeper.timeout=null")
    assert last.code == 0, last.err
    assert_equal("whole", "a")
