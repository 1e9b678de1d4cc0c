"""Sweeps as a user meets them, most with a task that trains nothing."""

import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest
from rich.console import Console

from fmnist_sweep.results import record
from fmnist_sweep.results.tables import Run
from fmnist_sweep.sweep import database
from fmnist_sweep.sweep.display import Display, label
from tests import tiny_task
from tests.conftest import Command

FAST = ("trainer.epochs=1",)
SEARCH = ("optimizer.lr=tag(log,interval(1e-4,1e-1))",)


def study(name: str) -> optuna.Study:
    path = Path(f"multirun/{name}", "study.db").absolute()
    return database.load(database.Address(f"sqlite:///{path}", name))


@pytest.fixture(autouse=True)
def disconnected() -> Iterator[None]:
    yield
    database.disconnect()


def states(name: str) -> list[str]:
    return [trial.state.name for trial in study(name).trials]


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(f"multirun/{name}/sweep.csv")


def runs(name: str) -> list[str]:
    folders = [path.name for path in Path("multirun", name).iterdir() if path.is_dir()]
    return sorted(folder for folder in folders if folder != "plots")


def test_real_grid_in_order_with_tables(fmnist_train: Command, small: tuple[str, ...]) -> None:
    outcome = fmnist_train("-m", "optimizer.lr=0.0001,0.001,0.01", "name=rates", *small)
    assert outcome.code == 0, outcome.err
    assert runs("rates") == ["0", "1", "2"]
    rows = table("rates")
    assert list(rows["trial"]) == [0, 1, 2]
    assert list(rows["optimizer.lr"]) == [0.0001, 0.001, 0.01]
    assert set(rows["state"]) == {"COMPLETE"}
    curves = pd.read_csv("multirun/rates/curves.csv")
    assert list(curves["trial"]) == [0, 0, 1, 1, 2, 2]
    assert list(curves["epoch"]) == [1, 2, 1, 2, 1, 2]
    last = curves[curves["epoch"] == 2].reset_index()
    assert list(last["val_accuracy"]) == list(rows["val_accuracy"]) == list(rows["objective"])
    lines = [line.split() for line in outcome.out.splitlines()]
    ranked = [line for line in lines if line and line[0] in "123" and len(line) > 5]
    best = [int(trial) for trial in rows.sort_values("objective", ascending=False)["trial"]]
    assert [int(line[1]) for line in ranked] == best
    assert [line[-1] for line in ranked if line[1] == "1"] == ["baseline"]
    assert sum("baseline" in line for line in ranked) == 1
    for trial in "012":
        folder = Path("multirun/rates", trial)
        assert {"train.log", "history.csv", "summary.json", ".hydra", "trial.json"} <= {
            path.name for path in folder.iterdir()
        }
        assert "Epoch [2/2]" in (folder / "train.log").read_text()
    assert "Epoch [" not in outcome.out


def test_product_of_keys_and_groups(tiny: Command) -> None:
    swept = ("optimizer=adam,sgd", "seed=range(1,3)", "data.batch_size=16,32")
    assert tiny("-m", *FAST, *swept, "name=all").code == 0
    rows = table("all")
    assert [tuple(row) for row in rows[["optimizer", "seed", "data.batch_size"]].values] == [
        (optimizer, seed, size)
        for optimizer in ("adam", "sgd")
        for seed in (1, 2)
        for size in (16, 32)
    ]
    config = Path("multirun/all/4/.hydra/config.yaml").read_text()
    assert "torch.optim.SGD" in config


def test_parameters_keep_names_and_types(tiny: Command) -> None:
    assert tiny("-m", *FAST, "optimizer=sgd", "data.batch_size=16", "seed=1,2", "name=a").code == 0
    trial = study("a").trials[1]
    assert trial.params == {"seed": 2}
    attributes = trial.user_attrs
    assert attributes["data.batch_size"] == 16 and attributes["optimizer"] == "sgd"


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "cmaes", "qmc", "nsgaii", "nsgaiii"])
def test_samplers_repeat_with_their_seed(tiny: Command, sampler: str) -> None:
    def values(name: str, seed: int) -> list[dict[str, object]]:
        search = (*SEARCH, "model.width=range(64,513,64)", f"hydra/sweeper/sampler={sampler}")
        outcome = tiny(
            "-m", *FAST, *search, "hydra.sweeper.n_trials=4", f"seed={seed}", f"name={name}"
        )
        assert outcome.code == 0, outcome.err
        return [trial.params for trial in study(name).trials]

    first = values("a", 3)
    assert first[0] == {"optimizer.lr": 0.001, "model.width": 128}
    assert values("b", 3) == first
    if sampler == "tpe":
        assert values("c", 4)[1:] != first[1:]


def test_grid_sampler_tries_every_point_in_the_seeds_order(tiny: Command) -> None:
    swept = ("optimizer.lr=0.001,0.01", "trainer.epochs=int(interval(1,3))")
    assert tiny("-m", *swept, "hydra/sweeper/sampler=grid", "name=a").code == 0
    points = {(row["optimizer.lr"], row["trainer.epochs"]) for _, row in table("a").iterrows()}
    assert points == {(lr, epochs) for lr in (0.001, 0.01) for epochs in (1, 2, 3)}
    outcome = tiny("-m", *SEARCH, "hydra/sweeper/sampler=grid", "name=b")
    assert outcome.code == 1 and "optimizer.lr" in outcome.err and "choices" in outcome.err


def test_one_key_at_a_time_around_the_default(tiny: Command) -> None:
    design = ("hydra.sweeper.design=one_at_a_time", "trainer.epochs=2")
    swept = ("optimizer.lr=0.0001,0.001,0.01", "model.width=64,128")
    assert tiny("-m", *swept, *design, "name=a").code == 0
    rows = table("a").sort_values("trial")
    points = list(zip(rows["optimizer.lr"], rows["model.width"]))
    assert points == [(0.001, 128), (0.0001, 128), (0.01, 128), (0.001, 64)]
    outcome = tiny("-m", "optimizer.lr=0.1,0.2", *design, "name=b")
    assert outcome.code == 1
    assert outcome.err == (
        "hydra.sweeper.design=one_at_a_time: optimizer.lr must have its default, 0.001, among its "
        "values\n"
    )


def test_search_files_and_ranges_of_ones_own(tiny: Command) -> None:
    own = ("data.batch_size=32", "optimizer.lr=tag(log,interval(1e-3,1e-1))")
    asha = "hydra/sweeper/scheduler=asha"  # the tiny task cannot be paused
    assert tiny("-m", "search=mlp", *own, asha, "hydra.sweeper.n_trials=4", "name=a").code == 0
    trials = study("a").trials
    assert trials[0].params == {
        "optimizer.lr": 0.001,
        "model.width": 128,
        "trainer.epochs": 10,
    }
    assert all(0.001 <= trial.params["optimizer.lr"] <= 0.1 for trial in trials)
    assert all(trial.user_attrs["data.batch_size"] == 32 for trial in trials)
    epochs = trials[0].distributions["trainer.epochs"]
    assert epochs == optuna.distributions.IntDistribution(10, 50)


def test_whole_interval_is_taken_as_integers(tiny: Command) -> None:
    search = ("trainer.epochs=interval(1,3)", "hydra.sweeper.n_trials=3")
    assert tiny("-m", *search, "name=a").code == 0
    assert all(isinstance(trial.params["trainer.epochs"], int) for trial in study("a").trials)


def test_two_objectives_end_in_a_pareto_front(tiny: Command) -> None:
    outcome = tiny(
        "-m", "search=two_objectives", "trainer.epochs=1", "hydra.sweeper.n_trials=8", "name=a"
    )
    assert outcome.code == 0, outcome.err
    rows = table("a")
    front = {trial.number for trial in study("a").best_trials}
    marked = {int(line.split()[1]) for line in outcome.out.splitlines() if "Pareto front" in line}
    assert marked == front and 0 < len(front) < 8
    assert list(rows["objective_val_accuracy"]) == list(rows["val_accuracy"])
    assert list(rows["objective_seconds"]) == list(rows["seconds"])


def conditional(_: object, trial: optuna.Trial) -> None:
    """A custom search space: momentum is searched for SGD alone."""
    if trial.params["optimizer"] == "sgd":
        trial.suggest_float("optimizer.momentum", 0.5, 0.9)


def test_conditional_space(tiny: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    space = (
        "optimizer=adam,sgd",
        "hydra.sweeper.custom_search_space=tests.test_sweep.conditional",
        "hydra.sweeper.n_trials=8",
        "name=a",
    )
    outcome = tiny("-m", *FAST, *space)
    assert outcome.code == 1 and "FMNIST_SWEEP_TRUST" in outcome.err
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", "tests.*")
    assert tiny("-m", *FAST, *space).code == 0
    rows = table("a")
    assert set(rows["optimizer"]) == {"adam", "sgd"}
    assert list(rows["optimizer.momentum"].notna()) == list(rows["optimizer"] == "sgd")


def test_tables_are_derived_again_to_the_byte(tiny: Command, report: Command) -> None:
    outcome = tiny("-m", "seed=1,100,2", "optimizer=adam,sgd", "trainer.epochs=2", "name=a")
    assert outcome.code == 0, outcome.err
    paths = [Path("multirun/a", name) for name in ("sweep.csv", "curves.csv")]
    before = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()
    Path("multirun/a/study.db").unlink()
    outcome = report("multirun/a")
    assert outcome.code == 0 and "rank" in outcome.out, outcome.err
    assert [path.read_bytes() for path in paths] == before


def test_resume_tells_of_a_finished_run_that_the_study_has_not_heard_of(tiny: Command) -> None:
    assert tiny("-m", *FAST, "seed=1,2,3", "name=a").code == 0
    run = Path("multirun/a/1")
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with sqlite3.connect("multirun/a/study.db") as connection:
        connection.execute("UPDATE trials SET state = 'RUNNING' WHERE number = 1")
        connection.execute("DELETE FROM trial_values WHERE trial_id = 2")
    connection.close()
    database.disconnect()
    assert states("a") == ["COMPLETE", "RUNNING", "COMPLETE"]
    outcome = tiny("-m", *FAST, "seed=1,2,3", "name=a")
    assert outcome.code == 0 and "is complete" in outcome.out, outcome.err
    assert states("a") == ["COMPLETE"] * 3 and runs("a") == ["0", "1", "2"]
    assert study("a").trials[1].value == table("a")["objective"][1]
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("state", ["COMPLETE", "RUNNING"])
@pytest.mark.parametrize("name", ["summary.json", "history.csv"])
def test_resume_with_a_torn_file_is_one_line(name: str, state: str, tiny: Command) -> None:
    assert tiny("-m", *FAST, "seed=1,2,3", "name=a").code == 0
    Path("multirun/a/1", name).write_text("{torn")
    with sqlite3.connect("multirun/a/study.db") as connection:
        connection.execute(f"UPDATE trials SET state = '{state}' WHERE number = 1")
    connection.close()
    database.disconnect()
    outcome = tiny("-m", *FAST, "seed=1,2,3", "name=a")
    assert outcome.code == 1 and f"multirun/a/1/{name}: not " in outcome.err
    assert len(outcome.err.splitlines()) == 1, outcome.err


def test_display_on_a_terminal(tmp_path: Path) -> None:
    screen = Console(
        file=io.StringIO(), force_terminal=True, width=100, markup=False, highlight=False
    )
    done, pruned, failed = (
        Run(
            trial=number,
            state=state,
            params={"optimizer.lr": 0.1},
            default=False,
            objective=["val_accuracy"],
            direction=["maximize"],
            summary={"val_accuracy": 0.8 + number / 100, "reason": "why", "seconds": 2.0},
            history=[],
            folder=Path(str(number)),
        )
        for number, state in enumerate(("COMPLETE", "PRUNED", "FAILED"))
    )
    with Display(screen, 6, [done]) as display:
        for number in (1, 2, 3):
            display.started(number, tmp_path / str(number))
        (tmp_path / "3").mkdir()
        (tmp_path / "3/history.csv").write_text("epoch\n1\n2\n")
        display.finished(pruned)
        display.finished(failed)
        line = display.line()
    assert line.startswith("3 of 6 trials | best val_accuracy 0.8000 (trial 0) | about ")
    assert line.endswith(" left | 1 pruned | 1 failed | running 3 (2 epochs)")
    shown = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "[3/6] Trial 2 FAILED: why, 2.0 s; optimizer.lr=0.1" in shown


def test_values_are_whole_however_narrow_the_terminal() -> None:
    params = {"optimizer.lr": 0.00123456, "model.width": 512, "data.batch_size": 16}
    assert label(params) == "optimizer.lr=0.001235 model.width=512 data.batch_size=16"
    assert label(params, 46) == "lr=0.001235 width=512 batch_size=16"
    assert label(params, 30) == "lr=0.001235 width=512 …size=16"
    assert label(params, 5) == "lr=0.001235 …th=512 …ze=16"
    same = {"a.rate": 1, "b.rate": 2}
    assert label(same, 17) == "a.rate=1 b.rate=2"
    assert label(same, 12) == "…te=1 …te=2"


def test_unnamed_sweeps_share_no_folder(tiny: Command) -> None:
    first = tiny("-m", *FAST, "seed=1,2")
    second = tiny("-m", *FAST, "seed=1,2")
    folders = [line for o in (first, second) for line in o.out.splitlines() if "folder:" in line]
    assert len(set(folders)) == 2


def test_failures_are_recorded_and_the_others_go_on(tiny: Command) -> None:
    t = tiny_task
    seeds = (1, t.RAISES, 2, t.RETURNS_NONE, 3, t.RETURNS_NAN, 4, t.EXITS, 5, t.RETURNS_TEXT)
    outcome = tiny("-m", *FAST, f"seed={','.join(map(str, seeds))}", "name=a")
    assert outcome.code == 0, outcome.err
    rows = table("a")
    assert list(rows["state"]) == ["COMPLETE", "FAILED"] * 5
    assert states("a") == ["COMPLETE", "FAIL"] * 5
    reasons = list(rows["reason"])[1::2]
    assert reasons == [
        "RuntimeError: the task raised",
        "returned None instead of val_accuracy",
        "val_accuracy became nan",
        "sys.exit(3)",
        "returned 'good' instead of val_accuracy",
    ]
    for trial, reason in zip(range(1, 10, 2), reasons):
        assert reason in Path(f"multirun/a/{trial}/train.log").read_text()
        assert reason in outcome.out


def test_real_diverging_trial_fails_alone(fmnist_train: Command, small: tuple[str, ...]) -> None:
    outcome = fmnist_train("-m", *small, "optimizer=sgd", "optimizer.lr=0.01,1e30,0.02", "name=a")
    assert outcome.code == 0, outcome.err
    rows = table("a")
    assert list(rows["state"]) == ["COMPLETE", "FAILED", "COMPLETE"]
    assert "became" in rows["reason"][1]


@pytest.mark.parametrize(
    ("seeds", "most", "done"),
    [
        ("100,1,2", "3", 1),
        ("1,100,101,2,102,103,104,3", "3", 7),
        ("1,100,2", "1", 2),
        ("100,200,300,101,1", "null", 5),
    ],
)
def test_max_failures(tiny: Command, seeds: str, most: str, done: int) -> None:
    outcome = tiny("-m", *FAST, f"seed={seeds}", "name=a", f"hydra.sweeper.max_failures={most}")
    assert len(table("a")) == done
    assert outcome.code == (0 if most == "null" else 1)
    assert "Traceback" not in outcome.err and "rank" in outcome.out
    assert ("max_failures" in outcome.err) == (most != "null")


def test_all_trials_failing_is_one_line(tiny: Command) -> None:
    outcome = tiny("-m", *FAST, "seed=100,101", "hydra.sweeper.max_failures=null", "name=a")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("All 2 trials failed")
    assert "Traceback" not in outcome.err


def test_pruning_keeps_curves_and_intermediate_values(
    fmnist_train: Command, small: tuple[str, ...]
) -> None:
    outcome = fmnist_train(
        "-m",
        "trainer.epochs=4",
        *(override for override in small if "epochs" not in override),
        "optimizer.lr=0.001,0.002,1e-6,1e-7",
        "hydra/sweeper/pruner=median",
        "hydra.sweeper.pruner.n_startup_trials=2",
        "hydra.launcher.max_stack=2",
        "name=a",
    )
    assert outcome.code == 0, outcome.err
    rows, curves = table("a"), pd.read_csv("multirun/a/curves.csv")
    assert list(rows["state"]) == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    for trial in study("a").trials:
        curve = curves[curves["trial"] == trial.number]
        assert trial.intermediate_values == dict(zip(curve["epoch"], curve["val_accuracy"]))
        assert trial.value == curve["val_accuracy"].iloc[-1]
    assert rows["epochs"][2] < 4
    assert "pruned after epoch" in rows["reason"][2]


def test_stock_sweepers_leave_the_same_runs(
    fmnist_train: Command, report: Command, small: tuple[str, ...]
) -> None:
    for sweeper in ("basic", "optuna"):
        extra = ["n_trials=3", "direction=maximize", "sampler.seed=1"]
        outcome = fmnist_train(
            "-m",
            *small,
            f"hydra/sweeper={sweeper}",
            f"name={sweeper}",
            "optimizer.lr=1e-4,0.001,0.01",
            *(f"hydra.sweeper.{key}" for key in extra if sweeper == "optuna"),
        )
        assert outcome.code == 0, outcome.err
        assert runs(sweeper) == ["0", "1", "2"]
        outcome = report(f"multirun/{sweeper}")
        assert outcome.code == 0, outcome.err
        rows = table(sweeper)
        assert len(rows) == 3 and set(rows["state"]) == {"COMPLETE"}
        values = [float(value) for value in rows["optimizer.lr"]]
        assert set(values) <= {0.0001, 0.001, 0.01}
        summary = json.loads(Path(f"multirun/{sweeper}/1/summary.json").read_text())
        assert rows["objective"][1] == summary["val_accuracy"]


def test_a_grid_goes_on_in_any_order(tiny: Command) -> None:
    rates, sizes = "optimizer.lr=0.01,0.001", "data.batch_size=32,64,128"
    assert tiny("-m", *FAST, rates, sizes, "hydra.sweeper.n_trials=3", "name=a").code == 0
    shuffled = (sizes, rates, "hydra/sweeper/sampler=grid")
    assert tiny("-m", *FAST, *shuffled, "name=a").code == 0
    points = sorted(
        (t.params["optimizer.lr"], t.params["data.batch_size"]) for t in study("a").trials
    )
    assert points == [(lr, size) for lr in (0.001, 0.01) for size in (32, 64, 128)]


def test_a_changed_grid_has_all_of_its_own_points(tiny: Command) -> None:
    def sizes(text: str) -> list[int]:
        grid = (f"data.batch_size=range({text})", "hydra.sweeper.accept_changes=true")
        outcome = tiny("-m", *FAST, "seed=1,2", *grid, "name=a")
        assert outcome.code == 0, outcome.err
        return sorted(trial.params["data.batch_size"] for trial in study("a").trials)

    assert sizes("32,34") == [32, 32, 33, 33]
    assert sizes("32,35") == [32, 32, 33, 33, 34, 34]
    assert sizes("34,36") == [32, 32, 33, 33, 34, 34, 35, 35]
    assert sizes("34,36") == [32, 32, 33, 33, 34, 34, 35, 35]


def test_null_can_be_the_default(tiny: Command) -> None:
    swept = ("trainer.clip_norm=null,1.0", "optimizer.lr=0.001,0.01")
    assert tiny("-m", *FAST, *swept, "hydra.sweeper.design=one_at_a_time", "name=a").code == 0
    defaults = [
        record.read_json(Path("multirun/a", str(n)), "trial.json")["default"] for n in "012"
    ]
    assert defaults == [True, False, False]
    assert study("a").trials[0].params["trainer.clip_norm"] is None
    search = ("trainer.clip_norm=null,1.0", "optimizer.lr=interval(0.001,0.01)")
    assert tiny("-m", *FAST, *search, "hydra.sweeper.n_trials=1", "name=b").code == 0
    assert study("b").trials[0].params == {"trainer.clip_norm": None, "optimizer.lr": 0.001}


def test_a_loss_is_minimised(tiny: Command) -> None:
    objective = "hydra.sweeper.objective=val_loss"
    assert tiny("-m", *FAST, "optimizer.lr=0.01,0.1", objective, "name=a").code == 0
    assert study("a").direction.name == "MINIMIZE"
    assert tiny("-m", *FAST, "optimizer.lr=0.01,0.1", "name=b").code == 0
    assert study("b").direction.name == "MAXIMIZE"


def test_a_launcher_that_starts_nothing_uses_no_trial_up(tiny: Command) -> None:
    grid = ("-m", *FAST, "optimizer.lr=0.01,0.001,0.1", "name=a")
    for _ in range(2):
        outcome = tiny(*grid, "hydra/launcher=joblib", "hydra.launcher.n_jobs=0")
        assert outcome.code == 1 and "Traceback" not in outcome.err
        assert "the launcher starts no job (ValueError: n_jobs == 0" in outcome.err
        assert "3 trials left. Run the same command to resume." in outcome.err
    assert tiny(*grid).code == 0
    assert [trial.state.name for trial in study("a").trials] == ["COMPLETE"] * 3


def test_a_study_that_is_gone_is_not_begun_again(tiny: Command) -> None:
    grid = ("-m", *FAST, "optimizer.lr=0.01,0.001", "name=a")
    assert tiny(*grid).code == 0
    Path("multirun/a/study.db").unlink()
    before = runs("a")
    outcome = tiny(*grid)
    assert outcome.code == 1 and "which its database has no longer" in outcome.err
    assert len(outcome.err.splitlines()) == 1 and runs("a") == before


def test_the_folder_of_a_stock_sweeper_is_left_alone(tiny: Command) -> None:
    Path("st/0").mkdir(parents=True)
    outcome = tiny("-m", *FAST, "seed=1,2", "hydra.sweep.dir=st")
    assert outcome.code == 1 and "st: holds another sweeper's runs" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert [path.name for path in Path("st").iterdir()] == ["0"]


def test_a_folder_of_a_run_takes_no_sweep_and_that_of_a_sweep_no_run(
    tiny: Command, fmnist_train: Command, small: tuple[str, ...]
) -> None:
    assert tiny("-m", *FAST, "optimizer.lr=0.01,0.001", "name=a").code == 0
    refused = fmnist_train(*small[:3], "hydra.run.dir=multirun/a")
    assert refused.code == 1 and "hydra.run.dir=multirun/a: holds a sweep" in refused.err
    assert not Path("multirun/a/.hydra").exists() and not Path("multirun/a/model.pt").exists()
    Path("run").mkdir()
    record.finish(Path("run"), "COMPLETE")
    refused = tiny("-m", *FAST, "optimizer.lr=0.01,0.001", "hydra.sweep.dir=run")
    assert refused.code == 1 and "run: holds a run" in refused.err
    assert [path.name for path in Path("run").iterdir()] == ["summary.json"]
