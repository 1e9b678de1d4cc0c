"""Confirmations: fresh seeds, one opening of the test set, and what is concluded."""

import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from scipy import stats

from fmnist_sweep import confirm as command
from fmnist_sweep.results import facts, record
from fmnist_sweep.results.metrics import Measure
from fmnist_sweep.results.tables import Run, Sweep
from fmnist_sweep.task.cli import parsed
from fmnist_sweep.task.config import ConfigError, conf_folder, parse
from fmnist_sweep.task.confirm import test_set, training, verdict, writing
from fmnist_sweep.task.confirm.candidates import Candidate, candidates, fresh_seeds
from fmnist_sweep.task.data import source
from fmnist_sweep.task.data.idx import CLASS_NAMES
from tests import sweeps
from tests.conftest import Command, InProcess
from tests.sweeps import KEY, trial

SMALL = {"train_size": 640, "val_size": 500}
QUICK = ("--top", "2", "--seeds", "2", "--no-refit")
ACCURACY = Measure("val_accuracy", "maximize")


@pytest.fixture
def confirm(in_process: InProcess) -> Command:
    return in_process(command.main)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The baseline, a better trial and a worse one; the values are invented."""
    rates = (0.001, 0.002, 0.00001)
    rows = [trial(v, params={KEY: lr}) for v, lr in zip((0.8, 0.99, 0.5), rates)]
    return sweeps.write(tmp_path / "sweep", rows, data=SMALL)


def runs_of(folder: Path) -> list[Run]:
    sweep = Sweep(folder)
    sweep.update()
    return list(sweep.runs.values())


_watched: list[tuple[str, bool]] = []
_note: list[Path] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _note and event == "open" and "t10k" in str(arguments[0]):
        _watched.append((Path(str(arguments[0])).name, _note[0].exists()))


sys.addaudithook(_hook)


@pytest.fixture
def opened(folder: Path) -> Iterator[list[tuple[str, bool]]]:
    """Every opening of a test file by this process, and whether the sweep had a note of it."""
    _note.append(folder / "test_set.json")
    yield _watched
    _note.clear()
    _watched.clear()


def test_confirmation_opens_the_test_set_once(
    folder: Path,
    confirm: Command,
    opened: list[tuple[str, bool]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    splits = []
    load = source.load
    monkeypatch.setattr(source, "load", lambda f, split: (splits.append(split), load(f, split))[1])
    outcome = confirm(str(folder), *QUICK)
    assert outcome.code == 0, outcome.err
    assert splits.count("test") == 1 and all(noted for _, noted in opened) and opened
    assert "Test accuracy" in outcome.out and "were luck" not in outcome.out
    found = json.loads((folder / "confirm.json").read_text())
    assert found["seeds"] == [1000, 1001]
    assert {one["name"] for one in found["candidates"]} == {"trial-0", "trial-1"}
    # The search said 99 %; a network that has seen 640 images is far from that.
    assert found["selection_bias"]["mean"] > 0.1
    assert found["test"]["opened_for"] == 1 and len(found["test"]["by_seed"]) == 2
    run = folder / f"confirm/{found['test']['name']}-seeds-1000-1001"
    matrices = [record.read_json(run / f"repeat-{k}", "test.json") for k in range(2)]
    assert all(np.sum(matrix["confusion"]) == 10_000 for matrix in matrices)
    for matrix in matrices:
        assert np.trace(matrix["confusion"]) / 1e4 == pytest.approx(matrix["test_accuracy"])
    table = pd.read_csv(folder / "confirm.csv")
    assert list(table["rank"]) == [1, 2] and {"seed_1000", "seed_1001"} <= set(table.columns)
    assert {"confirm.png", "confusion.png"} <= {p.name for p in (folder / "plots").iterdir()}
    assert "Confirmed on fresh seeds" in (folder / "report.html").read_text()

    # Once more: everything is known, and the test files stay closed.
    opened.clear()
    runs = {p: p.stat().st_mtime_ns for p in (folder / "confirm").rglob("summary.json")}
    again = confirm(str(folder), *QUICK)
    assert again.code == 0 and opened == [] and splits.count("test") == 1
    assert {p: p.stat().st_mtime_ns for p in (folder / "confirm").rglob("summary.json")} == runs
    assert again.out.splitlines()[-1:] == outcome.out.splitlines()[-1:]
    assert json.loads((folder / "confirm.json").read_text()) == found

    # Another selection is refused, then, if one insists, noted.
    fewer = ("--top", "2", "--seeds", "1", "--no-refit")
    refused = confirm(str(folder), *fewer)
    assert refused.code == 1 and "--again" in refused.err and len(refused.err.splitlines()) == 1
    assert opened == []
    insisted = confirm(str(folder), *fewer, "--again")
    assert insisted.code == 0 and "selection 2" in insisted.out
    notes = json.loads((folder / "test_set.json").read_text())["opened"]
    assert [note["again"] for note in notes] == [False, True]
    assert [note["selection"]["seeds"] for note in notes] == [[1000, 1001], [1000]]


def test_model_and_experiment_can_be_used(
    folder: Path, confirm: Command, fmnist_train: Command
) -> None:
    assert confirm(str(folder), *QUICK).code == 0
    outcome = fmnist_train("--config-dir", str(folder), "experiment=best", "--cfg", "job")
    assert outcome.code == 0, outcome.err
    composed = yaml.safe_load(outcome.out)
    winner = json.loads((folder / "confirm.json").read_text())["test"]["name"]
    trained = yaml.safe_load(
        (folder / winner.removeprefix("trial-") / ".hydra/config.yaml").read_text()
    )
    assert composed["optimizer"]["lr"] == trained["optimizer"]["lr"]
    assert composed["data"]["train_size"] == 640 and composed["trainer"]["epochs"] == 2
    assert composed["trainer"]["device"] == "auto"
    import torch

    state = torch.load(folder / "model.pt", weights_only=True)
    assert sum(t.numel() for t in state.values()) == 109_386


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "scheduler=cosine",
            "augment=flip",
            "trainer.label_smoothing=0.1",
            "trainer.clip_norm=1.0",
        ],
        ["~model", "+model._target_=torch.nn.modules.linear.Linear", "+model.in_features=784"],
        ["optimizer=sgd", "~optimizer.nesterov", "+optimizer.maximize=true"],
    ],
)
def test_the_experiment_is_the_whole_configuration(
    overrides: list[str], tmp_path: Path, fmnist_train: Command
) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(conf_folder()):
        composed = compose("config", overrides, return_hydra_config=True)
    (tmp_path / "run/.hydra").mkdir(parents=True)
    choices = OmegaConf.to_container(composed.hydra.runtime.choices)
    text = yaml.safe_dump({"hydra": {"runtime": {"choices": choices}}})
    (tmp_path / "run/.hydra/hydra.yaml").write_text(text)
    (tmp_path / "experiment").mkdir()
    best = writing.experiment(parsed(composed), tmp_path / "run", tmp_path)
    (tmp_path / "experiment/best.yaml").write_text(best)
    outcome = fmnist_train("--config-dir", str(tmp_path), "experiment=best", "--cfg", "job")
    assert outcome.code == 0, outcome.err
    assert parse(yaml.safe_load(outcome.out)).identity == parsed(composed).identity


def test_interrupted_it_goes_on(
    folder: Path, confirm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, count = training.trial.Training.finish, [0]

    def interrupted(run: training.trial.Training) -> Any:
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        return finish(run)

    monkeypatch.setattr(training.trial.Training, "finish", interrupted)
    outcome = confirm(str(folder), *QUICK)
    assert outcome.code == 130 and "Run the same command to resume" in outcome.err
    assert not (folder / "test_set.json").exists()
    assert confirm(str(folder), *QUICK).code == 0
    assert count[0] == 3  # the first was kept, the second began anew in a folder of its own
    names = {path.name for path in (folder / "confirm").iterdir()}
    assert len(names) == 3 and sum(name.endswith("-2") for name in names) == 1


def test_a_failed_training_comes_last(tmp_path: Path, confirm: Command) -> None:
    rows = [trial(0.8, params={KEY: 0.001}), trial(0.9, params={KEY: 1e30})]
    folder = sweeps.write(tmp_path / "sweep", rows, data=SMALL)
    outcome = confirm(str(folder), *QUICK)
    assert outcome.code == 0, outcome.err
    found = json.loads((folder / "confirm.json").read_text())
    assert [one["name"] for one in found["candidates"]] == ["trial-0", "trial-1"]
    assert found["candidates"][1]["fresh"] is None and "a training failed" in outcome.out


def test_selected_on_the_test_set(tmp_path: Path, confirm: Command) -> None:
    data = {**SMALL, "validation": "test"}
    folder = sweeps.write(tmp_path / "sweep", [trial(0.8)], data=data)
    outcome = confirm(str(folder), *QUICK)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Beware")
    found = json.loads((folder / "confirm.json").read_text())
    assert found["selected_on_test"] and found["selection_bias"] is None
    config = yaml.safe_load(
        (folder / "confirm/trial-0-seeds-1000-1001/.hydra/config.yaml").read_text()
    )
    assert config["data"]["validation"] == "held_out" and config["seed"] == 1000


@pytest.mark.slow
def test_refit_takes_all_training_images(tmp_path: Path, confirm: Command) -> None:
    data = {**SMALL, "batch_size": 500}
    folder = sweeps.write(tmp_path / "sweep", [trial(0.8)], data=data)
    outcome = confirm(str(folder), "--seeds", "2")
    assert outcome.code == 0, outcome.err
    for repeat in range(2):
        run = folder / f"confirm/refit-trial-0-seeds-1000-1001/repeat-{repeat}"
        summary = record.summary(run)
        assert summary and summary["seed"] == 1000 + repeat
        assert summary["train_size"] == 60_000 and summary["epochs"] == 2
    found = json.loads((folder / "confirm.json").read_text())
    assert found["test"]["accuracy"]["mean"] > 0.75 and found["test"]["refit"]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", pickle.dumps({"a": 1}), pickle.dumps(Path), None],
    ids=["empty", "text", "pickle", "class", "missing"],
)
def test_a_damaged_model_is_one_line(
    content: bytes | None, folder: Path, confirm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = training.trial.Training.finish

    def damaged(run: training.trial.Training) -> Any:
        found = finish(run)
        for model in run.folder.rglob("model.pt"):
            model.unlink() if content is None else model.write_bytes(content)
        return found

    monkeypatch.setattr(training.trial.Training, "finish", damaged)
    outcome = confirm(str(folder), "--top", "1", "--seeds", "1", "--no-refit")
    assert outcome.code == 1 and "model.pt: " in outcome.err
    assert len(outcome.err.splitlines()) == 1, outcome.err


@pytest.mark.parametrize(
    "text", ["{torn", "{}", '{"test_loss": 1.0, "test_accuracy": 0.5, "confusion": [[1]]}']
)
def test_a_test_result_of_somebody_elses_is_one_line(
    text: str, folder: Path, confirm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = training.trial.Training.finish

    def with_test(run: training.trial.Training) -> Any:
        (run.folder / "test.json").write_text(text)
        return finish(run)

    monkeypatch.setattr(training.trial.Training, "finish", with_test)
    outcome = confirm(str(folder), "--top", "1", "--seeds", "1", "--no-refit")
    assert outcome.code == 1 and "test.json: " in outcome.err
    assert len(outcome.err.splitlines()) == 1, outcome.err


# What is trained


def test_candidates_are_configurations_whatever_their_seed(tmp_path: Path) -> None:
    rows = [(0.001, 0, 0.80), (0.001, 1, 0.90), (0.002, 0, 0.86), (0.002, 1, 0.86)]
    made = [trial(v, params={KEY: lr, "seed": s}, default=not i)
            for i, (lr, s, v) in enumerate(rows)]  # fmt: skip
    folder = sweeps.write(tmp_path / "sweep", made)
    found = candidates(folder, runs_of(folder), 1, "val_accuracy")
    assert [(one.name, one.value, one.is_baseline) for one in found] == [
        ("trial-2", pytest.approx(0.86), False),
        ("trial-0", pytest.approx(0.85), True),
    ]
    assert found[0].params == {KEY: 0.002} and found[0].config([7, 8]).repeats == 2


def test_baseline_that_was_no_trial(tmp_path: Path) -> None:
    made = [trial(0.8, params={KEY: lr}, default=False) for lr in (0.01, 0.02)]
    folder = sweeps.write(tmp_path / "sweep", made)
    assert len(candidates(folder, runs_of(folder), 5, "val_accuracy")) == 2
    (folder / "multirun.yaml").write_text(yaml.safe_dump(sweeps.CONFIG))
    *_, base = candidates(folder, runs_of(folder), 1, "val_accuracy")
    assert base.name == "baseline" and base.is_baseline and base.value is None
    assert base.config([3]).optimizer.lr == 0.001


@pytest.mark.parametrize("name", ["0/.hydra/config.yaml", "multirun.yaml"])
@pytest.mark.parametrize("kind", ["bomb", "ring"])
def test_aliases_take_neither_memory_nor_time(kind: str, name: str, tmp_path: Path) -> None:
    folder = sweeps.write(tmp_path / "sweep", [trial(0.8, default=False)])
    levels = [f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 60)]
    text = "\n".join(["a0: &a0 1", *levels]) if kind == "bomb" else "a: &a {a: *a}"
    (folder / name).write_text(text)
    facts.flat(facts.configuration(folder / "0"))
    with pytest.raises(record.RecordError, match="it has an alias"):
        candidates(folder, runs_of(folder), 2, "val_accuracy")


def test_references_are_followed_to_plain_values_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    folder = sweeps.write(tmp_path / "sweep", [trial(0.8)])
    config = folder / "0/.hydra/config.yaml"
    plain = config.read_text()
    config.write_text(plain + "a: ${b}\nb: ${trainer.epochs}\nc: ${data.train_size}\n")
    (found,) = candidates(folder, runs_of(folder), 1, "val_accuracy")
    assert found.values["a"] == found.values["b"] == 2 and found.values["c"] is None
    doubling = "".join(f"a{n}: ${{a{n - 1}}}${{a{n - 1}}}\n" for n in range(1, 60))
    for more in (
        "a: ${oc.env:SECRET}",
        "a: ${a}",
        "a: ${data}",
        "a: ${none}",
        f"a0: x\n{doubling}",
    ):
        config.write_text(f"{plain}{more}\n")
        with pytest.raises(ConfigError, match="cannot be repeated"):
            candidates(folder, runs_of(folder), 1, "val_accuracy")


def test_lower_is_better_where_the_sweep_says_so(tmp_path: Path) -> None:
    folder = sweeps.write(
        tmp_path / "sweep", [trial(0.8), trial(0.9)], objective=["val_loss"], direction=["minimize"]
    )
    assert candidates(folder, runs_of(folder), 1, "val_accuracy")[0].name == "trial-1"


def test_what_the_search_found_is_of_the_metric_that_is_confirmed(tmp_path: Path) -> None:
    """Whatever the search went by."""
    rows = [trial(0.8, seconds=3.0), trial(0.9, seconds=5.0)]
    folder = sweeps.write(tmp_path / "sweep", rows, objective=["seconds"], direction=["minimize"])
    (first, *_) = candidates(folder, runs_of(folder), 2, "val_accuracy")
    assert (first.name, first.value) == ("trial-0", 0.8)


def test_fresh_seeds_are_in_no_trial_and_no_repeat(tmp_path: Path) -> None:
    rows = [trial(0.8, values={"seed": 1001}), trial(0.7, values={"seed": 1004, "repeats": 3})]
    folder = sweeps.write(tmp_path / "sweep", rows)
    assert fresh_seeds(runs_of(folder), 2) == [1002, 1003]
    assert fresh_seeds(runs_of(folder), 3) == [1007, 1008, 1009]


def test_any_number_of_repeats_takes_no_memory(tmp_path: Path) -> None:
    rows = [trial(0.8, values={"repeats": 10**12}), trial(0.7, values={"seed": 10**12 + 1})]
    folder = sweeps.write(tmp_path / "sweep", rows)
    assert fresh_seeds(runs_of(folder), 2) == [10**12 + 2, 10**12 + 3]


# What is concluded


def test_mean_against_scipy() -> None:
    values = [0.80, 0.82, 0.81, 0.85, 0.79]
    found = verdict.mean(values)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.std == pytest.approx(np.std(values, ddof=1))
    assert verdict.mean([0.8]) == verdict.Mean(1, 0.8, None, None, None)


def candidate(name: str, value: float) -> Candidate:
    return Candidate(name, {}, value, False, {}, Path())


def test_standings_are_paired_by_seed() -> None:
    one, other, broken = (candidate(n, v) for n, v in (("a", 0.95), ("b", 0.9), ("c", 0.99)))
    results = [
        (one, {1: 0.80, 2: 0.84, 3: 0.88}),
        (other, {1: 0.81, 2: 0.85, 3: 0.89}),
        (broken, {1: 0.99, 2: None, 3: 0.99}),
    ]
    table = verdict.rank_candidates(results, ACCURACY)
    assert [one.candidate.name for one in table] == ["b", "a", "c"]
    # Every seed says the same, however much seeds differ among each other.
    assert table[1].behind and table[1].behind.mean == pytest.approx(0.01)
    assert table[1].behind.std == pytest.approx(0) and not table[1].within_noise
    assert table[2].fresh is None and table[2].behind is None
    lucky = verdict.selection_bias([one, other], table, ACCURACY)
    assert lucky and lucky.mean == pytest.approx(0.95 - 0.84)
    assert (
        lucky.high
        and lucky.low
        and lucky.high - lucky.mean == pytest.approx(stats.t.ppf(0.975, 2) * 0.04 / 3**0.5)
    )


def test_standings_of_what_is_minimised() -> None:
    results = [(candidate(n, v), {1: v, 2: v + 0.01}) for n, v in (("a", 0.5), ("b", 0.4))]
    table = verdict.rank_candidates(results, Measure("val_loss", "minimize"))
    assert [one.candidate.name for one in table] == ["b", "a"]
    assert table[1].behind and table[1].behind.mean == pytest.approx(0.1)


def test_per_class_by_hand() -> None:
    confusion = np.diag([8] * 10)
    confusion[6, 0] = 2  # two shirts taken for T-shirts
    rows = verdict.per_class([confusion.tolist()], CLASS_NAMES)
    assert rows[6]["class"] == "Shirt" and rows[6]["accuracy"] == 0.8
    assert rows[6]["most_often_taken_for"] == "T-shirt/top" and rows[0]["precision"] == 0.8
    assert rows[0]["f1"] == pytest.approx(16 / 18) and rows[6]["accuracy_std"] is None
    assert verdict.sampling_error(0.5, 10_000) == pytest.approx(0.0098, abs=1e-4)


# Notes and mistakes


def test_trials_that_came_furthest_fill_up_the_complete_ones(tmp_path: Path) -> None:
    trials = [
        trial(0.80),
        trial(0.86, "PRUNED", epochs=1),
        trial(0.84, "PRUNED", epochs=2),
        trial(0.85, "PAUSED", epochs=2),
        trial(None, "FAILED"),
        trial(0.79),
    ]
    folder = sweeps.write(tmp_path / "a", trials)
    runs = Sweep(folder).update()

    def names(top: int) -> list[str]:
        return [one.name for one in candidates(folder, runs, top, "val_accuracy")]

    assert names(2) == ["trial-0", "trial-5"]
    assert names(9) == ["trial-0", "trial-5", "trial-3", "trial-2", "trial-1"]


def test_an_opening_is_noted_once(tmp_path: Path) -> None:
    selection = {"name": "trial-1", "seeds": [1, 2], "config": {"a": 1e-8, "b": (1, 2)}}
    assert test_set.note(tmp_path, selection, again=False) == 1
    assert test_set.note(tmp_path, selection, again=False) == 1
    with pytest.raises(ConfigError, match="trial-1, seeds"):
        test_set.note(tmp_path, {**selection, "seeds": [3]}, again=False)
    assert test_set.note(tmp_path, {**selection, "seeds": [3]}, again=True) == 2
    assert test_set.note(tmp_path, selection, again=False) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], ["nowhere: no such folder"]),
        (["empty"], ["empty: holds no finished run"]),
        (["failed"], ["failed: no trial has a result"]),
        (["sweep", "--top", "0"], ["--top=0: must be at least 1"]),
        (["sweep", "--seeds", "-1"], ["--seeds=-1: must be at least 1"]),
        (["torn"], ["torn/test_set.json: torn or edited"]),
        (["odd"], ["odd/test_set.json: torn or edited"]),
        (["begun"], ["begun/confirm/trial-0-seeds-1000-1004/summary.json: not JSON"]),
        (["typed"], ["repeat-0/summary.json: val_accuracy=high: no number"]),
        (["foreign"], ["foreign/multirun.yaml: not YAML"]),
        (["unknown"], ["unknown/0/.hydra/config.yaml"]),
        (["edited"], ["edited/0/.hydra/config.yaml", "optimizer.lr=-1"]),
        (["file"], ["file: no such folder"]),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, tmp_path: Path, confirm: Command, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    sweeps.write(tmp_path / "failed", [trial(None, "FAILED")])
    torn = sweeps.write(tmp_path / "torn", [trial(0.8)])
    (torn / "test_set.json").write_text('{"opened": [{"when')
    odd = sweeps.write(tmp_path / "odd", [trial(0.8)])
    (odd / "test_set.json").write_text('{"opened": ["selection"]}')
    begun = sweeps.write(tmp_path / "begun", [trial(0.8)]) / "confirm/trial-0-seeds-1000-1004"
    begun.mkdir(parents=True)
    (begun / "summary.json").write_text("{torn")
    typed = sweeps.write(tmp_path / "typed", [trial(0.8)]) / "confirm/trial-0-seeds-1000-1004"
    for run in (typed, typed / "repeat-0"):
        run.mkdir(parents=True)
        (run / "summary.json").write_text('{"state": "COMPLETE", "val_accuracy": "high"}')
    foreign = sweeps.write(tmp_path / "foreign", [trial(0.8, default=False)])
    (foreign / "multirun.yaml").write_text("[torn")
    unknown = sweeps.write(tmp_path / "unknown", [trial(0.8)])
    (unknown / "0/.hydra/config.yaml").unlink()
    sweeps.write(tmp_path / "edited", [trial(0.8, params={KEY: -1})])
    outcome = confirm(*arguments)
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1, outcome.err
    for word in words:
        assert word in outcome.err
    assert not (folder / "confirm").exists()
