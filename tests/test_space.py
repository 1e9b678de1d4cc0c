"""What a sweep's command line may say of its values: each kind of value, key and order."""

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial

from fmnist_sweep.sweep import database
from fmnist_sweep.sweep.overrides import override_text
from tests.conftest import Command

FAST = ("trainer.epochs=1",)


def params(name: str = "a") -> list[dict[str, Any]]:
    notes = sorted(
        Path("multirun", name).glob("*/trial.json"), key=lambda note: int(note.parent.name)
    )
    return [json.loads(note.read_text())["params"] for note in notes]


def table(name: str = "a") -> pd.DataFrame:
    database.disconnect()
    return pd.read_csv(f"multirun/{name}/sweep.csv", keep_default_na=False)


# A value is written as Hydra reads it.

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_subnormal=False),  # which training may have switched off
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.sampled_from(
        ["null", "True", "1", "1e3", "a,b", "[a]", "{a:b}", "${x}", "'", '"', "\\", " a "]
    ),
)


@given(st.one_of(PLAIN, st.lists(PLAIN, max_size=3)))
def test_a_value_is_read_as_it_was_written(value: Any) -> None:
    override = OverridesParser.create().parse_override(f"key={override_text(value)}")
    assert not override.is_sweep_override()
    config = OmegaConf.create({"key": override.value()})
    read = OmegaConf.to_container(config, resolve=True)["key"]  # type: ignore[index,call-overload]
    for one, other in zip(read, value) if isinstance(value, list) else [(read, value)]:
        assert one == other or (isinstance(other, float) and math.isnan(other) and math.isnan(one))
        assert type(one) is type(other)


def adds_choices(_: object, trial: optuna.Trial) -> None:
    """A custom search space whose choices are no text."""
    trial.suggest_categorical("trainer.clip_norm", [None, 1.0])
    trial.suggest_categorical("model.batch_norm", [True, False])


def test_choices_of_a_custom_space_keep_their_types(
    tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", "tests.*")
    space = "hydra.sweeper.custom_search_space=tests.test_space.adds_choices"
    outcome = tiny("-m", *FAST, space, "hydra.sweeper.n_trials=6", "name=a")
    assert outcome.code == 0, outcome.err
    assert set(table().state) == {"COMPLETE"}
    assert set(table()["trainer.clip_norm"]) == {"null", "1.0"}
    written = [OmegaConf.load(f"multirun/a/{n}/.hydra/config.yaml") for n in range(6)]
    assert {config.trainer.clip_norm for config in written} == {None, 1.0}
    assert {config.model.batch_norm for config in written} <= {True, False}


def test_a_search_file_may_hold_any_value(tiny: Command) -> None:
    Path("mine/search").mkdir(parents=True)
    Path("mine/search/own.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      trainer.clip_norm: null\n"
        "      optimizer.betas: [0.8, 0.99]\n      seed: choice(1, 2)\n"
    )
    assert tiny("-m", *FAST, "--config-dir=mine", "search=own", "name=a").code == 0
    config = OmegaConf.load("multirun/a/1/.hydra/config.yaml")
    assert config.trainer.clip_norm is None and config.optimizer.betas == [0.8, 0.99]
    assert [trial["seed"] for trial in params()] == [1, 2]


def test_quoted_choices_are_their_text_and_the_default_is_marked(tiny: Command) -> None:
    swept = "trainer.early_stopping.metric='val_loss','val_accuracy'"
    assert tiny("-m", *FAST, swept, "name=a").code == 0
    assert [trial["trainer.early_stopping.metric"] for trial in params()] == [
        "val_loss",
        "val_accuracy",
    ]
    note = json.loads(Path("multirun/a/0/trial.json").read_text())
    assert note["default"] is True


# A key is right if some combination of the swept groups has it.

RIGHT = {
    "a key of the swept options": (["scheduler=cosine,onecycle", "scheduler.final=0.0,0.1"], 4, 0),
    "a fixed key of theirs": (["scheduler=cosine,onecycle", "scheduler.per=epoch"], 2, 0),
    "of an optimizer": (["optimizer=sgd,rmsprop", "optimizer.momentum=0.5,0.9"], 4, 0),
    "of some options": (["optimizer=sgd,adam", "optimizer.betas=[0.9,0.999],[0.8,0.99]"], 2, 2),
    "of the default and others": (["optimizer=adam,sgd", "optimizer.betas=[0.9,0.99]"], 1, 1),
}


@pytest.mark.parametrize("launcher", ["stacked", "basic", "joblib"])
@pytest.mark.parametrize("case", RIGHT)
def test_a_key_that_some_combination_has(case: str, launcher: str, tiny: Command) -> None:
    if launcher != "stacked" and case != "of some options":
        pytest.skip("the same check before every launcher")
    arguments, complete, failed = RIGHT[case]
    where = [f"hydra/launcher={launcher}"]
    where += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    outcome = tiny("-m", *FAST, *arguments, *where, "name=a")
    assert outcome.code == 0, outcome.err
    rows = table()
    assert list(rows.state).count("COMPLETE") == complete
    assert list(rows.state).count("FAILED") == failed
    # A group without these keys is never the default of one with them.
    for row in rows[rows.state == "FAILED"].reason:
        assert "optimizer.betas: not with this optimizer" in row
    again = tiny("-m", *FAST, *arguments, *where, "name=a")
    assert again.code == 0 and "is complete" in again.out, again.err


WRONG = {
    "a value that none takes": (
        ["scheduler=cosine,onecycle", "scheduler.final=2,0.1"],
        ["scheduler.final=2", "<= 1"],
    ),
    "a key that none has": (
        ["scheduler=cosine,onecycle", "scheduler.fianl=0,1"],
        ["scheduler.fianl"],
    ),
    "a fixed key that none has": (
        ["optimizer=adam,sgd", "optimizer.alpha=0.9"],
        ["optimizer.alpha"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_no_combination_takes(case: str, tiny: Command) -> None:
    arguments, expected = WRONG[case]
    outcome = tiny("-m", *FAST, *arguments, "name=a")
    assert outcome.code == 1 and len(outcome.err.splitlines()) == 1
    assert all(text in outcome.err for text in expected), outcome.err
    assert not Path("multirun").exists()


# The order of choices is no part of a sweep.


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("seed=shuffle(range(1,7))", "seed=shuffle(range(1,7))"),
        ("seed=1,2,3,4,5,6", "seed=6,5,4,3,2,1"),
        ("seed=1,2,3,4,5,6", "seed=choice(2,1,3,4,5,6)"),
        ("optimizer=adam,sgd,nadam,adamw", "optimizer=sgd,adam,adamw,nadam"),
    ],
)
def test_choices_in_another_order_go_on(first: str, then: str, tiny: Command) -> None:
    assert tiny("-m", *FAST, first, "name=a", "hydra.sweeper.n_trials=2").code == 0
    outcome = tiny("-m", *FAST, then, "name=a", "hydra.sweeper.n_trials=4")
    assert outcome.code == 0, outcome.err
    tried = [str(trial) for trial in params()]
    assert len(tried) == len(set(tried)) == 4
    database.disconnect()


def test_a_search_that_can_try_all_points_tries_each_once(tiny: Command) -> None:
    Path("mine/search").mkdir(parents=True)
    Path("mine/search/own.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n"
        "      optimizer: choice(adam, sgd)\n      seed: choice(0, 1, 2)\n"
    )
    search = ("-m", *FAST, "--config-dir=mine", "search=own", "name=a")
    assert tiny(*search, "hydra.sweeper.n_trials=10").code == 0
    tried = [tuple(trial.values()) for trial in params()]
    assert tried[0] == ("adam", 0) and len(tried) == len(set(tried)) == 6
    database.disconnect()


def test_keys_that_change_no_result_may_change(tiny: Command, tmp_path: Path) -> None:
    grid = ("-m", *FAST, "seed=1,2,3", "name=a")
    assert tiny(*grid, "hydra.sweeper.n_trials=1").code == 0
    for changed in (
        "trainer.checkpoint=true",
        "trainer.log_every=7",
        "logger.kind=none",
        "data.verify=false",
        f"data.root={tmp_path}",
    ):
        outcome = tiny(*grid, changed, "hydra.sweeper.n_trials=2")
        assert outcome.code == 0, (changed, outcome.err)
    outcome = tiny(*grid, "trainer.label_smoothing=0.1")
    assert outcome.code == 1 and "trainer.label_smoothing: 0.0 -> 0.1" in outcome.err
    database.disconnect()


class Alternating(optuna.samplers.BaseSampler):
    """A sampler of somebody's own: the lowest and the highest value by turns."""

    def __init__(self, first: str) -> None:
        self.first = first

    def infer_relative_search_space(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample_relative(self, *_: Any) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any
    ) -> float:
        order = ["low", "high"] if self.first == "low" else ["high", "low"]
        return float(getattr(distribution, order[trial.number % 2]))


def test_a_sampler_of_your_own(tiny: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("conf/hydra/sweeper/sampler").mkdir(parents=True)
    Path("conf/hydra/sweeper/sampler/mine.yaml").write_text(
        "_target_: tests.test_space.Alternating\nfirst: low\n"
    )
    search = ("-m", "name=a", "optimizer.lr=interval(0.1,0.2)", "hydra.sweeper.n_trials=4")
    own = ("--config-dir=conf", "hydra/sweeper/sampler=mine")
    refused = tiny(*search, *own)
    assert refused.code == 1 and refused.err.count("\n") == 1
    assert "hydra.sweeper.sampler._target_=tests.test_space.Alternating" in refused.err
    monkeypatch.setenv("FMNIST_SWEEP_TRUST", "tests.*")
    outcome = tiny(*search, *own)
    assert outcome.code == 0, outcome.err
    assert pd.read_csv("multirun/a/sweep.csv")["optimizer.lr"].tolist() == [0.1, 0.2, 0.1, 0.2]
    Path("conf/hydra/sweeper/sampler/mine.yaml").write_text("_target_: tests.test_space.params\n")
    wrong = tiny(*search, *own)
    assert wrong.code == 1
    assert "_target_=tests.test_space.params: makes list, not a sampler of Optuna" in wrong.err
