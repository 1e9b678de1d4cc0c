"""Who gets epochs: trials are paused, resumed with the same numbers, and pruned at the end."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest

from fmnist_sweep.results import record
from fmnist_sweep.sweep import database, ranks
from tests import postgres
from tests.conftest import ROOT, Command
from tests.test_any_app import Shell, app, write

__all__ = ["app"]  # a fixture

EPOCHS = 10
RUNGS = (1, 3, 9)
GRID = (
    "-m",
    "optimizer.lr=0.0001,0.03,0.001,0.003,0.0003,0.01,0.1,0.0006,0.006",
    f"trainer.epochs={EPOCHS}",
    "data.train_size=640",
    "data.val_size=500",
    "trainer.compile=false",
)
ASHA = "hydra/sweeper/scheduler=asha"
FREEZE_THAW = "hydra/sweeper/scheduler=freeze_thaw"
INTERVALS = range(2, EPOCHS + 1, 2)


def curves(name: str) -> dict[int, list[float]]:
    """The validation losses of each trial, by epoch."""
    table = pd.read_csv(f"multirun/{name}/curves.csv")
    return {int(number): rows.val_loss.tolist() for number, rows in table.groupby("trial")}


def rows(name: str) -> pd.DataFrame:
    return pd.read_csv(f"multirun/{name}/sweep.csv").set_index("trial")


def halved(whole: Mapping[int, Sequence[float]], factor: int) -> dict[int, int]:
    """The epochs of each trial if one worker follows the paper's algorithm 2, lowest loss first.

    A trial among the best goes on without a pause. Once no trial is left to begin, the best of a
    rung goes on, however few have reached it.
    """
    at: dict[int, dict[int, float]] = {rung: {} for rung in RUNGS}
    paused: dict[int, int] = {}
    begun = 0

    def best(rung: int, at_least: int = 0) -> list[int]:
        ranked = sorted(at[rung], key=lambda number: at[rung][number])
        return ranked[: max(len(ranked) // factor, at_least)]

    def train(number: int, after: int) -> None:
        for epoch in range(after + 1, EPOCHS + 1):
            if epoch in RUNGS:
                at[epoch][number] = whole[number][epoch - 1]
                if number not in best(epoch):
                    paused[number] = epoch
                    return

    while True:
        at_least = int(begun == len(whole))
        promoted = [
            number
            for rung in reversed(RUNGS)
            for number in best(rung, at_least)
            if paused.get(number) == rung
        ]
        if promoted:
            train(promoted[0], paused.pop(promoted[0]))
        elif begun < len(whole):
            begun += 1
            train(begun - 1, 0)
        else:
            return {number: paused.get(number, EPOCHS) for number in whole}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> dict[int, list[float]]:
    """The whole curves of the grid's trials."""
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(
        [sys.executable, "-m", "fmnist_sweep.train", *GRID, "name=a"],
        cwd=folder,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FMNIST_SWEEP_DATA": str(data_root)},
    )
    table = pd.read_csv(folder / "multirun/a/curves.csv")
    return {int(number): each.val_loss.tolist() for number, each in table.groupby("trial")}


def check(
    name: str,
    whole: Mapping[int, Sequence[float]],
    storage: str | None = None,
    rungs: Sequence[int] = RUNGS,
) -> None:
    """Each trial has the numbers that it would have had without a pause, as far as it came."""
    found, table = curves(name), rows(name)
    assert found.keys() == whole.keys()
    for number, losses in found.items():
        assert losses == whole[number][: len(losses)], f"trial {number}"
        state = table.state[number]
        assert (state, len(losses)) in {("COMPLETE", EPOCHS), *(("PRUNED", r) for r in rungs)}
        assert table.epochs[number] == len(losses)
        if state == "PRUNED":
            assert table.reason[number] == f"pruned after epoch {len(losses)} of {EPOCHS}"
    assert "COMPLETE" in set(table.state)
    url = storage or f"sqlite:///{Path('multirun', name, 'study.db').absolute()}"
    trials = database.load(database.Address(url, name)).trials
    database.disconnect()
    assert [trial.state.name for trial in trials] == table.state.tolist()
    assert [len(trial.intermediate_values) for trial in trials] == table.epochs.tolist()


@pytest.mark.parametrize("factor", [2, 3])
def test_trials_are_promoted_as_in_the_paper(
    factor: int,
    whole: dict[int, list[float]],
    fmnist_train: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rungs = (1, 2, 4, 8) if factor == 2 else RUNGS
    monkeypatch.setattr("tests.test_scheduler.RUNGS", rungs)
    one = ("hydra.sweeper.n_jobs=1", f"hydra.sweeper.scheduler.factor={factor}")
    outcome = fmnist_train(*GRID, "name=a", ASHA, *one, "hydra.sweeper.objective=val_loss")
    assert outcome.code == 0, outcome.err
    check("a", whole, rungs=rungs)
    expected = halved(whole, factor)
    assert rows("a").epochs.to_dict() == expected
    assert len(set(expected.values())) > 2  # some were resumed
    assert "PAUSED: paused after epoch 1 of 10, val_loss" in outcome.out


@pytest.mark.parametrize(
    "launcher",
    [
        ("hydra/launcher=stacked",),
        ("hydra/launcher=stacked", "trainer.checkpoint=false", "hydra.sweeper.n_jobs=9"),
        pytest.param(("hydra/launcher=basic",), marks=pytest.mark.slow),
        pytest.param(
            ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"), marks=pytest.mark.torture
        ),
        pytest.param(
            ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweeper.shares=2"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=" ".join,
)
def test_every_launcher_pauses_and_resumes(
    launcher: tuple[str, ...], whole: dict[int, list[float]], fmnist_train: Command
) -> None:
    outcome = fmnist_train(*GRID, "name=a", ASHA, *launcher)
    assert outcome.code == 0, outcome.err
    check("a", whole)
    assert len(set(rows("a").epochs)) > 1
    assert not list(Path("multirun/a").glob("*/checkpoint*"))


@pytest.mark.parametrize("launcher", [(), ("hydra.sweeper.n_jobs=1",)], ids=["two", "one"])
def test_the_most_promising_trial_continues(
    launcher: tuple[str, ...], whole: dict[int, list[float]], fmnist_train: Command
) -> None:
    outcome = fmnist_train(*GRID, "name=a", FREEZE_THAW, *launcher)
    assert outcome.code == 0, outcome.err
    check("a", whole, rungs=INTERVALS)
    table = rows("a")
    # With lr=0.1 the accuracy stays at 30 %, with the others it reaches 70 %.
    assert table.epochs[6] == 2 and table.epochs.max() == EPOCHS, table.epochs
    assert table.epochs.sum() < EPOCHS * len(whole) - 8
    again = fmnist_train(*GRID, "name=a", FREEZE_THAW, *launcher)
    assert "is complete: 9 of 9" in again.out and rows("a").equals(table)


@pytest.mark.parametrize("scheduler", [pytest.param(ASHA, marks=pytest.mark.torture), FREEZE_THAW])
def test_kills_change_no_numbers(
    scheduler: str,
    whole: dict[int, list[float]],
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FMNIST_SWEEP_DATA": str(data_root)}
    command = [sys.executable, "-m", "fmnist_sweep.train", *GRID, "name=a", scheduler]
    moments = random.Random(0)
    for kills in range(3):
        with open("log.txt", "a") as log:
            sweep = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        ends = Path("multirun/a").glob
        before = len(list(ends("*/history.csv")))
        until = time.monotonic() + 60
        while len(list(ends("*/history.csv"))) <= before and sweep.poll() is None:
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        os.killpg(sweep.pid, signal.SIGKILL if kills else signal.SIGINT)
        sweep.wait()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    check("a", whole, rungs=RUNGS if scheduler == ASHA else INTERVALS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "storage", [pytest.param("sqlite", marks=pytest.mark.torture), "postgresql"]
)
def test_two_commands_on_one_study(
    storage: str,
    whole: dict[int, list[float]],
    tmp_path: Path,
    data_root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on two hosts: either resumes what the other has paused."""
    if storage == "postgresql" and postgres.programs() is None:
        pytest.skip("no PostgreSQL here")
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FMNIST_SWEEP_DATA": str(data_root)}
    with postgres.server() if storage == "postgresql" else nullcontext() as server:
        url = server.new_database() if server else None
        more = [f"hydra.sweeper.storage={url}"] if url else []
        command = [sys.executable, "-m", "fmnist_sweep.train", *GRID, "name=a", ASHA, *more]
        command += ["hydra.launcher.workers=1"]
        both = [subprocess.Popen(command, env=environment) for _ in range(2)]
        assert [sweep.wait(120) for sweep in both] == [0, 0]
        check("a", whole, url)
    notes = [
        record.read_json(path.parent, path.name) for path in Path().glob("multirun/a/*/trial.json")
    ]
    assert len({note["worker"] for note in notes}) == 2
    assert len(set(rows("a").epochs)) > 2


def test_a_paused_trial_waits_for_more_time(
    whole: dict[int, list[float]], fmnist_train: Command
) -> None:
    sweep = (*GRID, "name=a", ASHA, "hydra.sweeper.n_jobs=1")
    outcome = fmnist_train(*sweep, "hydra.sweeper.max_epochs=8")
    assert outcome.code == 0, outcome.err
    table = rows("a")
    n_paused = (table.state == "PAUSED").sum()
    assert n_paused > 1 and f"trials left, {n_paused} of them paused." in outcome.out
    assert table.reason[0] == "paused after epoch 1 of 10"
    assert list(Path("multirun/a/0").glob("checkpoint*"))
    # Nothing is due: the sweep says so, and leaves the paused trials as they are.
    assert fmnist_train(*sweep, "hydra.sweeper.max_epochs=8").code == 0
    assert rows("a").equals(table)
    assert fmnist_train(*sweep).code == 0
    check("a", whole)


def test_without_the_scheduler_paused_trials_train_to_their_end(
    whole: dict[int, list[float]], fmnist_train: Command
) -> None:
    sweep = (*GRID, "name=a", "hydra.sweeper.n_jobs=1")
    assert fmnist_train(*sweep, ASHA, "hydra.sweeper.max_epochs=8").code == 0
    assert "PAUSED" in set(rows("a").state)
    assert fmnist_train(*sweep).code == 0
    assert curves("a") == whole and set(rows("a").state) == {"COMPLETE"}


def test_a_paused_trial_without_its_state_begins_again(
    whole: dict[int, list[float]], fmnist_train: Command
) -> None:
    sweep = (*GRID, "name=a", ASHA, "hydra.sweeper.n_jobs=1")
    assert fmnist_train(*sweep, "hydra.sweeper.max_epochs=8").code == 0
    for checkpoint in Path("multirun/a").glob("*/checkpoint*"):
        checkpoint.write_bytes(b"torn")
    paused = rows("a").index[rows("a").state == "PAUSED"]
    shutil.rmtree(Path("multirun/a", str(paused[0])))
    outcome = fmnist_train(*sweep)
    assert outcome.code == 0, outcome.err
    check("a", whole)


def test_repeats_pause_together(fmnist_train: Command) -> None:
    command = (*GRID[:1], "optimizer.lr=0.0001,0.003,0.001", *GRID[2:], "repeats=2")
    assert fmnist_train(*command, "name=whole").code == 0
    outcome = fmnist_train(*command, "name=a", ASHA)
    assert outcome.code == 0, outcome.err
    check("a", curves("whole"))


@pytest.mark.parametrize("brackets", [1, 2])
def test_another_application_prunes_where_it_cannot_pause(
    brackets: int, app: Shell, tmp_path: Path
) -> None:
    write(
        tmp_path,
        "for step in range(0, 900, 100):\n"
        "    report(step, score=cfg.lr * (step + 1))\n"
        "return cfg.lr",
    )
    outcome = app(
        *("-m", "hydra/sweeper=study", "hydra.sweep.dir=out", ASHA),
        "lr=" + ",".join(f"0.{n}" for n in (5, 4, 6, 3, 7, 2, 8, 1)),
        "hydra.sweeper.objective=score",
        "hydra.sweeper.direction=maximize",
        f"hydra.sweeper.scheduler.brackets={brackets}",
    )
    assert outcome.returncode == 0, outcome.stderr
    table = pd.read_csv(tmp_path / "out/sweep.csv").set_index("trial")
    reached = dict(zip(table.lr, table.epochs))
    if brackets == 1:  # each better one comes third in time
        assert reached == {0.5: 9, 0.4: 1, 0.6: 9, 0.3: 1, 0.7: 9, 0.2: 1, 0.8: 9, 0.1: 1}
    else:  # the second bracket decides after three steps
        assert reached == {0.5: 9, 0.4: 9, 0.6: 9, 0.3: 3, 0.7: 9, 0.2: 3, 0.8: 9, 0.1: 3}
    assert set(table.state[table.epochs < 9]) == {"PRUNED"}


def test_the_sampler_learns_from_paused_trials(fmnist_train: Command) -> None:
    sampler = ("hydra.sweeper.sampler.n_startup_trials=2", "hydra.sweeper.sampler.seed=3")
    search = ("optimizer.lr=tag(log,interval(1e-6,1.0))", *GRID[2:], "name=a", ASHA)
    limits = ("hydra.sweeper.n_trials=9", "hydra.sweeper.max_epochs=6", "hydra.sweeper.n_jobs=1")
    rungs = ("hydra.sweeper.scheduler.factor=10",)
    outcome = fmnist_train("-m", *search, *sampler, *limits, *rungs)
    assert outcome.code == 0, outcome.err
    table = rows("a")
    assert table.state.tolist() == ["PAUSED"] * 6
    distributions = {"optimizer.lr": optuna.distributions.FloatDistribution(1e-6, 1.0, log=True)}
    trials = [
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.PRUNED,
            params={"optimizer.lr": rate},
            distributions=distributions,
            intermediate_values={1: accuracy},
        )
        for rate, accuracy in zip(table["optimizer.lr"], table.val_accuracy)
    ]
    tpe = optuna.samplers.TPESampler(n_startup_trials=2, seed=3)
    for number in range(1, 6):  # the first is the default configuration
        study = optuna.create_study(direction="maximize", sampler=tpe)
        study.add_trials(trials[:number])
        expected = study.ask(distributions).params["optimizer.lr"]
        assert table["optimizer.lr"][number] == pytest.approx(expected)


MISTAKES = {
    ("hydra.sweeper.scheduler.factor=1",): "hydra.sweeper.scheduler.factor=1: ",
    ("hydra.sweeper.scheduler.min_epochs=0",): "hydra.sweeper.scheduler.min_epochs=0: ",
    ("hydra.sweeper.scheduler.min_epochs=10",): (
        "hydra.sweeper.scheduler: its first decision on some trials comes after 10 epochs, and no "
        "trial has more than trainer.epochs=10"
    ),
    ("hydra.sweeper.scheduler.brackets=4",): "comes after 27 epochs",
    ("hydra/sweeper/pruner=median",): "hydra/sweeper/scheduler: decides who goes on, and so does",
    ("hydra.sweeper.objective=seconds",): "hydra/sweeper/scheduler: needs an objective that each",
    (FREEZE_THAW, "hydra.sweeper.scheduler.interval=0"): "hydra.sweeper.scheduler.interval=0: ",
    (FREEZE_THAW, "hydra.sweeper.scheduler.interval=12"): "comes after 12 epochs",
    (FREEZE_THAW, "hydra.sweeper.scheduler.min_epochs=2"): "hydra.sweeper.scheduler.min_epochs",
    (
        FREEZE_THAW,
        "hydra.sweeper.objective=[val_loss,val_accuracy]",
    ): "on a single objective",
    ("hydra.sweeper.scheduler.kind=best",): "kind=best: must be one of asha, freeze_thaw, pbt",
    (
        "hydra.sweeper.objective=[val_loss,seconds]",
    ): "hydra/sweeper/scheduler: needs an objective that each epoch has",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line(mistake: tuple[str, ...], fmnist_train: Command) -> None:
    outcome = fmnist_train(*GRID, "name=a", ASHA, *mistake)
    assert outcome.code == 1 and MISTAKES[mistake] in outcome.err
    assert outcome.err.count("\n") == 1 and not list(Path().glob("multirun/a/[0-9]*"))


def dominated(point: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    return any(
        all(y >= x for x, y in zip(point, other)) and list(other) != list(point) for other in others
    )


def test_ranks_follow_fronts() -> None:
    points = np.random.default_rng(0).integers(0, 12, (60, 3)).astype(float)
    study = optuna.create_study(directions=["maximize"] * 3)
    for point in points:
        study.add_trial(optuna.trial.create_trial(values=point.tolist()))
    ordered = ranks.order(points)
    assert sorted(ordered) == list(range(60))
    first = {trial.number for trial in study.best_trials}
    assert set(ordered[: len(first)]) == first
    for place, index in enumerate(ordered):
        assert not dominated(points[index], points[ordered[place + 1 :]])
    line = np.array([0.0, 1.0, 1.1, 5.0, 10.0])
    assert ranks.order(np.stack([line, 10 - line], axis=1)) == [0, 4, 3, 2, 1]


TWO = "hydra.sweeper.objective=[a,b]"
CURVES_OF_TWO = """
for step in range(1, 10):
    report(step, a=cfg.n - 10 * (cfg.lr > 1) + step, b=9 - cfg.n - 10 * (cfg.lr > 1) + step)
"""


@pytest.mark.parametrize("decides", ["pruner=median", "scheduler=asha"])
def test_several_objectives_go_by_rank(decides: str, tmp_path: Path, app: Shell) -> None:
    """The trials with lr=2 are dominated from the first step on, the others never."""
    write(tmp_path, CURVES_OF_TWO)
    done = app(
        "-m",
        "hydra/sweeper=study",
        "hydra.sweep.dir=out",
        "n=1,2,3,4,5,6,7,8",
        "lr=0.1,2",
        TWO,
        "hydra.sweeper.direction=[maximize,maximize]",
        f"hydra/sweeper/{decides}",
        *(["hydra.sweeper.scheduler.factor=2"] if "asha" in decides else []),
    )
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "out/sweep.csv").set_index("trial").sort_index()
    stopped = table[table.state == "PRUNED"]
    assert len(stopped) >= 4 and set(table.state) == {"COMPLETE", "PRUNED"}
    beaten = table[table.lr == 2]
    assert set(beaten[beaten.index > 9].state) == {"PRUNED"}, table
    if decides == "pruner=median":  # a front of equals is better than the median of all
        assert set(stopped.lr) == {2}


def test_paused_trials_of_several_objectives_continue(fmnist_train: Command) -> None:
    objectives = "hydra.sweeper.objective=[val_loss,val_accuracy]"
    whole = fmnist_train(*GRID, "name=whole", objectives)
    assert whole.code == 0, whole.err
    outcome = fmnist_train(*GRID, "name=halved", ASHA, objectives)
    assert outcome.code == 0, outcome.err
    table = rows("halved")
    expected, found = curves("whole"), curves("halved")
    assert all(found[n] == expected[n][: len(found[n])] for n in expected)
    assert (table.state == "COMPLETE").any() and table.paused_after.notna().any()
    best = [n for n, curve in expected.items() if curve[0] == min(c[0] for c in expected.values())]
    assert table.state[best[0]] == "COMPLETE" or len(found[best[0]]) >= 3


def test_a_search_learns_from_paused_trials_of_several_objectives(tiny: Command) -> None:
    outcome = tiny(
        "-m",
        "optimizer.lr=tag(log,interval(1e-4,1e-1))",
        "name=a",
        "hydra.sweeper.objective=[val_loss,val_accuracy]",
        ASHA,
        "trainer.epochs=9",
        "hydra.sweeper.n_trials=40",
    )
    assert outcome.code == 0, outcome.err
    table = rows("a")
    assert len(table) == 40 and (table.state == "PRUNED").sum() > 10
    later = table["optimizer.lr"][20:]
    # Both objectives are best at 0.001: a third of a log-uniform draw lies this close to it.
    assert later.between(10**-3.5, 10**-2.5).mean() > 0.5


def test_an_application_without_pauses_refuses_freeze_thaw(tmp_path: Path, app: Shell) -> None:
    write(tmp_path, "report(1, value=cfg.lr)")
    done = app("-m", "hydra/sweeper=study", "lr=0.1,2", FREEZE_THAW)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "scheduler=freeze_thaw: needs an application whose trials can be paused" in done.stderr
