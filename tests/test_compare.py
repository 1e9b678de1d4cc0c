"""Comparisons: statistics against hand-computed and SciPy's values, tables of other versions."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from fmnist_sweep import compare as command
from fmnist_sweep.results.compare import statistics
from fmnist_sweep.results.compare.findings import anytime, findings
from fmnist_sweep.results.compare.reading import read
from fmnist_sweep.results.compare.verdicts import shared
from tests import sweeps
from tests.conftest import Command, InProcess
from tests.sweeps import trial

A = [0.80, 0.84, 0.82, 0.86, 0.81, 0.85, 0.83]


@pytest.fixture
def compare(in_process: InProcess) -> Command:
    return in_process(command.main)


def grid(folder: Path, values: list[float], **more: Any) -> Path:
    """A trial for each value, learning rates 0.001, 0.002, ..."""
    return sweeps.write(folder, [trial(value) for value in values], **more)


# Statistics


def test_paired_against_scipy() -> None:
    differences = [0.01, 0.02, -0.005, 0.03, 0.015, 0.012, 0.007]
    found = statistics.paired(differences, 0.95)
    assert found.value == pytest.approx(sum(differences) / 7) and found.n == 7
    assert found.p == stats.wilcoxon(differences).pvalue
    own = stats.bootstrap(
        (np.sort(differences),),
        np.mean,
        n_resamples=9999,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (found.low, found.high) == (own.low, own.high) and not found.within_noise


def test_wilcoxon_by_hand() -> None:
    # Six differences of one sign: of 2**6 equally likely signs two are as extreme.
    assert statistics.paired([1, 2, 3, 4, 5, 6], 0.95).p == pytest.approx(2 / 2**6)


def test_equal_values_differ_by_nothing() -> None:
    found = statistics.paired([0.0] * 8, 0.95)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1) and found.within_noise


def test_too_few_pairs_have_no_interval() -> None:
    found = statistics.paired([0.1, 0.2], 0.95)
    assert found.value == pytest.approx(0.15) and found.low is None and found.within_noise


def test_welch_against_scipy_and_by_hand() -> None:
    a, b = [0.80, 0.82, 0.81, 0.83], [0.84, 0.86, 0.85]
    one, other = ((float(np.mean(x)), float(np.std(x, ddof=1)), len(x)) for x in (a, b))
    found = statistics.welch(one, other, 0.95)
    reference = stats.ttest_ind(b, a, equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    # Equal spreads and sizes: t with 2 n - 2 degrees of freedom.
    found = statistics.welch((0.0, 1.0, 5), (2.0, 1.0, 5), 0.95)
    assert found.high == pytest.approx(2 + 2.306004135 * math.sqrt(2 / 5))


def test_expected_best_by_hand() -> None:
    values = np.array([1.0, 2.0, 3.0])
    # Of nine equally likely pairs five hold a 3, three more a 2.
    assert statistics.expected_best(values, 2) == pytest.approx((5 * 3 + 3 * 2 + 1) / 9)
    assert statistics.expected_best(values, 1) == pytest.approx(2)
    assert statistics.expected_best(np.stack([values, 2 * values]), 1) == pytest.approx([2, 4])


def test_best_of_n_knows_noise_from_difference() -> None:
    dice = np.random.default_rng(1)
    one, other = dice.normal(0.8, 0.01, 40), dice.normal(0.8, 0.01, 40)
    assert statistics.best_of_n(one.tolist(), other.tolist(), 0.95).within_noise
    found = statistics.best_of_n(one.tolist(), (other + 0.1).tolist(), 0.95)
    assert not found.within_noise and found.value == pytest.approx(0.1, abs=0.02)


@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.floats(0, 1, width=32, allow_subnormal=False), min_size=2, max_size=30),
    st.randoms(),
)
def test_order_does_not_matter(values: list[float], dice: random.Random) -> None:
    shuffled = dice.sample(values, len(values))
    assert statistics.paired(values, 0.95) == statistics.paired(shuffled, 0.95)
    assert statistics.best_of_n(values, A, 0.95) == statistics.best_of_n(shuffled, A, 0.95)


# Tables


@settings(deadline=None, max_examples=10, suppress_health_check=list(HealthCheck))
@given(st.randoms())
def test_shuffled_rows_change_nothing(tmp_path: Path, dice: random.Random) -> None:
    paths = []
    for name, values in (("a", A), ("b", A[::-1])):
        folder = tmp_path / name
        if not folder.exists():
            grid(folder, values)
        paths.append(folder / "sweep.csv")
    copies = [tmp_path / f"{path.parent.name}-shuffled.csv" for path in paths]
    for path, copy in zip(paths, copies):
        head, *lines = path.read_text().splitlines(keepends=True)
        copy.write_text("".join([head, *dice.sample(lines, len(lines))]))

    def found(files: list[Path]) -> dict[str, Any]:
        result = findings(read(files, None))
        kept = ("sweeps", "equal_budget", "winners", "search_space", "comparisons")
        text = json.dumps({key: result[key] for key in kept}, default=str)
        for file, name in zip(files, "ab"):
            text = text.replace(str(file), name).replace(file.name, name)
        return dict(json.loads(text))

    plain = [tmp_path / f"{path.parent.name}-plain.csv" for path in paths]
    for path, copy in zip(paths, plain):
        copy.write_bytes(path.read_bytes())
    assert found(copies) == found(plain)


def test_folders_and_tables_say_the_same(tmp_path: Path) -> None:
    folders = [grid(tmp_path / "a", A), grid(tmp_path / "b", [v + 0.01 for v in A])]
    by_folder = findings(read(folders, None))
    by_table = findings(read([folder / "sweep.csv" for folder in folders], None))
    assert by_folder["comparisons"] == by_table["comparisons"]
    (only,) = by_folder["comparisons"]
    assert only["kind"] == "shared configurations" and only["n"] == 7
    assert only["value"] == pytest.approx(0.01) and not only["within_noise"]
    assert "b is better by 1 percentage points on average" in only["sentence"]
    assert "more than noise" in only["sentence"]


def test_budgets_and_figures_by_hand(tmp_path: Path) -> None:
    a = sweeps.write(
        tmp_path / "a",
        [trial(0.7, epochs=2), trial(0.75, "PRUNED", epochs=1), trial(0.8, epochs=3)],
    )
    b = sweeps.write(tmp_path / "b", [trial(0.72, epochs=4), trial(None, "FAILED", epochs=0)])
    tables = read([a, b], None)
    assert anytime(tables[0], "epochs") == [(2, 0.7), (6, 0.8)]
    found = findings(tables)
    first = found["sweeps"][0]
    assert first["trials"] == {"COMPLETE": 2, "PAUSED": 0, "PRUNED": 1, "FAILED": 0}
    assert (first["epochs"], first["seconds"], first["images"]) == (6, 6, pytest.approx(300_000))
    assert (first["best"], first["best_trial"], first["median"]) == (0.8, 2, 0.75)
    points = [(p["spent"], p["best"]) for p in found["equal_budget"]["epochs"]]
    assert points == [(1, [None, None]), (2, [0.7, None]), (3, [0.7, None]), (4, [0.7, 0.72])]


def test_repeats_compare_the_winners(tmp_path: Path) -> None:
    a = sweeps.write(tmp_path / "a", [trial(0.80, std=0.01, repeats=5, params={"x": 1})])
    b = sweeps.write(tmp_path / "b", [trial(0.84, std=0.01, repeats=5, params={"y": 1})])
    found = findings(read([a, b], None))
    (winners,) = found["comparisons"]
    reference = statistics.welch((0.80, 0.01, 5), (0.84, 0.01, 5), 0.95)
    assert winners["kind"] == "winners" and winners["low"] == reference.low
    assert "confirm" in winners["sentence"] and not winners["within_noise"]


def test_tables_of_other_versions(tmp_path: Path) -> None:
    table = pd.read_csv(grid(tmp_path / "a", A) / "sweep.csv")
    old = table.drop(columns=["images_per_second", "seconds", "reason", "run"])
    old["gpu_hours"] = 1.5
    mixed = old[["val_accuracy", "objective", "optimizer.lr", "state", "trial", "gpu_hours"]]
    (tmp_path / "old").mkdir()
    old.to_csv(tmp_path / "old/sweep.csv", index=False)
    mixed.to_csv(tmp_path / "mixed.csv", index=False)
    tables = read([tmp_path / "a", tmp_path / "old", tmp_path / "mixed.csv"], None)
    assert [table.keys for table in tables] == [["optimizer.lr"]] * 3
    found = findings(tables)
    assert found["sweeps"][1]["seconds"] is None and found["sweeps"][1]["epochs"] == 14
    assert list(found["equal_budget"]) == []
    assert len(shared(tables[0], tables[2])) == 7
    assert "do not differ at all" in found["comparisons"][0]["sentence"]
    assert found["confidence"] == pytest.approx(0.975)


def test_a_fixed_key_makes_configurations_the_same(tmp_path: Path) -> None:
    both = [trial(0.8, params={"optimizer.lr": 0.001, "data.batch_size": s}) for s in (16, 32)]
    a = sweeps.write(tmp_path / "a", both)
    b = sweeps.write(tmp_path / "b", [trial(0.7, params={"optimizer.lr": 0.001})])
    # The second sweep's batch size is not swept but stands in its configuration: 32.
    assert shared(*read([a, b], None)) == [(0.8, 0.7)]


def test_warnings(tmp_path: Path) -> None:
    a = grid(tmp_path / "a", A, data={"validation": "test"})
    b = grid(tmp_path / "b", A, data={"split_seed": 3})
    (tmp_path / "c.csv").write_bytes((b / "sweep.csv").read_bytes())
    warnings = findings(read([a, b, tmp_path / "c.csv"], None))["warnings"]
    assert "a selected on the test images" in warnings[0]
    assert "c.csv: without its run folders" in warnings[1]
    assert "data.split_seed 0 against 3" in warnings[2] and "different images" in warnings[2]


# The command


def test_command_prints_and_writes(tmp_path: Path, compare: Command) -> None:
    grid(tmp_path / "first|[red]", A)
    grid(tmp_path / "second$x_", [v + 0.001 * (-1) ** i for i, v in enumerate(A)])
    outcome = compare("first|[red]", "second$x_", "--out", "out/deep")
    assert outcome.code == 0, outcome.err
    assert "within noise" in outcome.out and "first|[red]" in outcome.out
    out = tmp_path / "out/deep"
    assert {path.name for path in out.iterdir()} == {
        "compare.csv", "compare.md", "compare.png", "compare.json",
    }  # fmt: skip
    table = pd.read_csv(out / "compare.csv")
    assert list(table["name"]) == ["first|[red]", "second$x_"] and table["best"][0] == 0.86
    assert "first\\|\\[red\\]" in (out / "compare.md").read_text()
    outcome = compare("first|[red]", "second$x_", "--format", "json")
    assert json.loads(outcome.out) == json.loads((out / "compare.json").read_text())


def test_objective_of_choice(tmp_path: Path, compare: Command) -> None:
    two = {"objective": ["val_accuracy", "seconds"], "direction": ["maximize", "minimize"]}
    for name in "ab":
        sweeps.write(tmp_path / name, [trial(0.8), trial(0.7)], **two)
    outcome = compare("a", "b")
    assert outcome.code == 1 and "--objective val_accuracy" in outcome.err
    outcome = compare("a", "b", "--objective", "seconds", "--format", "json")
    assert json.loads(outcome.out)["direction"] == "minimize"


MISTAKES = {
    "one": (["a"], ["a: is one sweep"]),
    "missing": (["a", "nowhere"], ["nowhere: no such file or folder"]),
    "twice": (["a", "a/"], ["a: is given 2 times"]),
    "empty folder": (["a", "empty"], ["empty: holds neither run folders nor a sweep.csv"]),
    "no sweep": (["a", "other.csv"], ["other.csv: is no sweep's table", "trial"]),
    "torn": (["a", "torn.csv"], ["torn.csv: torn", "no end"]),
    "binary": (["a", "binary.csv"], ["binary.csv: torn or not a table"]),
    "nothing in it": (["a", "nothing.csv"], ["nothing.csv: torn or not a table"]),
    "head only": (["a", "head.csv"], ["head.csv: has nothing to compare: no trials"]),
    "edited state": (["a", "state.csv"], ["state.csv: torn or edited: state 'FINE'"]),
    "edited value": (["a", "value.csv"], ["value.csv: torn or edited: objective holds 'good'"]),
    "huge number": (["a", "huge.csv"], ["huge.csv: torn or edited: trial holds 99999"]),
    "no counted trial": (
        ["a", "half.csv"],
        ["half.csv: torn or edited", "not numbered one by one"],
    ),
    "much too wide": (["a", "wide.csv"], ["wide.csv: torn", "200,019 columns, more than 1,000"]),
    "too long a line": (["a", "long.csv"], ["long.csv: torn or not a table: line 2 has "]),
    "other name": (
        ["a", "name.csv"],
        ["name.csv: is no sweep's table: it has no column objective"],
    ),
    "doubled": (["a", "doubled.csv"], ["doubled.csv: torn or edited", "not numbered one by one"]),
    "all failed": (["a", "failed"], ["failed: has nothing to compare: all 2 trials failed"]),
    "other objective": (["a", "loss"], ["to maximize val_accuracy", "minimize val_loss"]),
    "torn run": (["a", "tornrun"], ["tornrun/0: not a run"]),
    "unknown column": (["a", "b", "--objective", "colour"], ["--objective colour", "val_accuracy"]),
    "no folder": (["a", "b", "--out", "a/sweep.csv/x"], ["--out a/sweep.csv/x: "]),
}


@pytest.fixture
def mistakes(tmp_path: Path) -> None:
    text = (grid(tmp_path / "a", A) / "sweep.csv").read_text()
    grid(tmp_path / "b", A)
    (tmp_path / "empty").mkdir()
    sweeps.write(tmp_path / "failed", [trial(None, "FAILED"), trial(0.1, "PRUNED")])
    grid(tmp_path / "loss", A, objective=["val_loss"], direction=["minimize"])
    grid(tmp_path / "tornrun", A)
    (tmp_path / "tornrun/0/summary.json").write_text('{"state": "COMP')
    head, first = text.splitlines(keepends=True)[:2]
    files = {
        "other": "colour,size\nred,3\n",
        "torn": text[:-20],
        "nothing": "",
        "head": head,
        "state": text.replace("COMPLETE", "FINE", 1),
        "value": text.replace(f",{A[0]!r},", ",good,"),
        "huge": head + "9" * 400 + first,
        "half": head + "0.5" + first[1:],
        "wide": "0," * 200_000 + text,
        "long": head + "1," + first,
        "name": text.replace("objective", "objectives", 1),
        "doubled": text + first,
    }
    for name, content in files.items():
        (tmp_path / f"{name}.csv").write_text(content)
    (tmp_path / "binary.csv").write_bytes(b"\x89PNG\xff\xfe\x00\n")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(mistakes: None, compare: Command, name: str) -> None:
    arguments, words = MISTAKES[name]
    outcome = compare(*arguments)
    assert outcome.code == 1 and outcome.out == ""
    assert len(outcome.err.splitlines()) == 1, outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize(
    "values",
    [
        [None, 1.0, 0.5],
        [True, None, False],
        ["null", "NA", "nan", "None", ""],
        ["-relu", "=x", "[a,b]"],
        [1, 2.5, "x"],
    ],
)
def test_a_sweep_equals_the_copy_of_its_table(tmp_path: Path, values: list[Any]) -> None:
    key = "trainer.clip_norm"
    folder = sweeps.write(
        tmp_path / "a", [trial(0.8 + i / 100, params={key: v}) for i, v in enumerate(values)]
    )
    copy = tmp_path / "b.csv"
    copy.write_bytes((folder / "sweep.csv").read_bytes())
    tables = read([folder, copy], None)
    named = [value for value in values if value != ""]  # which a table cannot tell from none
    assert len(shared(*tables)) >= len(named)
    assert all(one == other for one, other in shared(*tables))


def test_a_key_that_is_null_in_all_of_the_other_sweep_is_known(tmp_path: Path) -> None:
    key = "trainer.clip_norm"
    swept = sweeps.write(tmp_path / "a", [trial(0.8, params={key: v}) for v in (None, 1.0)])
    fixed = sweeps.write(tmp_path / "b", [trial(0.9 + s, params={"seed": s}) for s in (0, 1)])
    both = read([swept, fixed], None)
    assert shared(*both) == [(0.8, 0.9)]
    assert both[1].setting(key, both[1].winner) == "null"


def test_searches_that_share_only_the_same_runs(tmp_path: Path) -> None:
    """Their baselines and first points, with the same seeds: no evidence on the searches."""
    first = [0.80, 0.82, 0.81]
    a, b = (
        sweeps.write(tmp_path / n, _search(first, more)) for n, more in (("a", A), ("b", A[3:]))
    )
    (same, best) = findings(read([a, b], None))["comparisons"]
    assert "the same runs have: they say nothing" in same["sentence"]
    assert "can be expected to find" in best["sentence"]


def _search(same: list[float], other: list[float]) -> list[dict[str, Any]]:
    offset = len(other) / 1000
    rates = [0.001 * (n + 1) for n in range(len(same))]
    rates += [0.1 + offset + n / 1e5 for n in range(len(other))]
    pairs = zip([*same, *other], rates)
    return [trial(value, params={sweeps.KEY: rate}) for value, rate in pairs]


def test_a_verdict_names_what_the_sweeps_had(tmp_path: Path) -> None:
    few = [trial(value, params={sweeps.KEY: 0.1 + n}) for n, value in enumerate(A[:3])]
    many = [trial(v + 0.05, params={sweeps.KEY: 9.0 + n}, epochs=4) for n, v in enumerate(A)]
    a, b = sweeps.write(tmp_path / "a", few), sweeps.write(tmp_path / "b", many)
    (best,) = findings(read([a, b], None))["comparisons"]
    assert "With 3 trials each" in best["sentence"]
    assert (
        "a has 3 complete trials and 6 epochs, b 7 complete trials and 28 epochs"
        in best["sentence"]
    )


def test_times_and_declared_ranges(tmp_path: Path, compare: Command) -> None:
    a, b = (grid(tmp_path / name, A) for name in "ab")
    started = {
        "hydra": {
            "sweeper": {"params": {sweeps.KEY: "tag(log,interval(1e-4, 1e-2))"}},
            "overrides": {"task": ["model.width=64,128", "seed=1"]},
        }
    }
    (a / "multirun.yaml").write_text(yaml.safe_dump(started))
    found = findings(read([a, b], None))
    assert found["search_space"][sweeps.KEY] == [
        "tag(log, interval(1e-4, 1e-2))",
        "7 values, 0.001 to 0.007",
    ]
    # A trial trains for two seconds and ends after three; the next begins a second later.
    assert (found["sweeps"][0]["seconds"], found["sweeps"][0]["wall_seconds"]) == (14, 27)
    shown = compare(str(a), str(b)).out
    assert re.search(r"time of all trials +14.0 s +14.0 s", shown)
    assert re.search(r"time from start to end +27.0 s +27.0 s", shown)
