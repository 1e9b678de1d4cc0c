"""Every model with every optimizer, scheduler and augmentation: composed, trained, resumed."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from fmnist_sweep.task.cli import parsed
from fmnist_sweep.task.config import conf_folder, parse
from tests.conftest import Command

GROUPS = ("model", "optimizer", "scheduler", "augment")
OPTIONS = {
    group: sorted(path.stem for path in Path(conf_folder(), group).glob("*.yaml"))
    for group in GROUPS
}
Combination = tuple[str, ...]
ALL: list[Combination] = list(itertools.product(*OPTIONS.values()))


def pairs(combination: Combination) -> set[tuple[tuple[int, str], ...]]:
    """Every two options that a combination has together."""
    return set(itertools.combinations(enumerate(combination), 2))


def covering(combinations: list[Combination]) -> list[Combination]:
    """Some in which every two options of different groups meet, chosen greedily."""
    missing = set().union(*map(pairs, combinations))
    chosen = []
    while missing:
        best = max(combinations, key=lambda combination: len(pairs(combination) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


# The pretrained networks take minutes more and differ in little that the groups touch.
SMALL = [combination for combination in ALL if combination[0] in ("mlp", "cnn")]


# What a run of two epochs asks of a scheduler.
FITTING = {
    "step": ["scheduler: {every: 1}"],
    "warmup_cosine": ["scheduler: {warmup_epochs: 1.0}"],
}


def plain(config: DictConfig) -> dict[str, Any]:
    """A composed configuration without Hydra's own part."""
    values = {str(key): value for key, value in config.items_ex(resolve=False) if key != "hydra"}
    resolved = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    assert isinstance(resolved, dict)
    return resolved  # type: ignore[return-value]


def lines(combination: Combination) -> list[str]:
    """A combination's command line."""
    return [
        *("trainer.epochs=9", "data.train_size=1000"),
        *(f"{group}={option}" for group, option in zip(GROUPS, combination)),
    ]


def test_there_are_so_many() -> None:
    assert [len(options) for options in OPTIONS.values()] == [6, 6, 7, 7]
    assert len(ALL) == 1764
    assert len(covering(ALL)) < 60


def test_every_combination_passes_the_schema() -> None:
    """A section is what it is by its own option alone, so that each is composed only once."""
    with initialize_config_dir(conf_folder()):
        base = plain(compose("config", ["trainer.epochs=9"]))
        sections = {
            (group, option): plain(compose("config", [f"{group}={option}"]))[group]
            for group in GROUPS
            for option in OPTIONS[group]
        }
    for combination in ALL:
        chosen = {group: sections[group, option] for group, option in zip(GROUPS, combination)}
        config = parse({**base, **chosen})
        assert config.scheduler.kind == combination[2]


@pytest.mark.torture
def test_every_combination_composes() -> None:
    with initialize_config_dir(conf_folder()):
        for combination in ALL:
            config = parsed(compose("config", lines(combination)))
            assert config.scheduler.kind == combination[2]


@pytest.mark.slow
def test_a_sweep_of_them_is_killed_resumed_and_trains_each(
    fmnist_train: Command, tmp_path: Path, data_root: Path
) -> None:
    """Every option of the groups, two epochs of one batch, in a single sweep."""
    models = itertools.cycle(["mlp", "cnn"])
    others = zip(*map(itertools.cycle, list(OPTIONS.values())[1:]), strict=False)
    combinations = [(next(models), *options) for options in itertools.islice(others, 7)]
    assert set().union(*combinations) == {"mlp", "cnn"}.union(*list(OPTIONS.values())[1:])
    check_killed_and_resumed_sweep(combinations, fmnist_train, tmp_path, data_root)


@pytest.mark.torture
@pytest.mark.parametrize(
    "which", ["every two options of mlp and cnn", "every two options", "all of mlp and cnn"]
)
def test_larger_sweeps_of_them(
    which: str, fmnist_train: Command, tmp_path: Path, data_root: Path
) -> None:
    combinations = SMALL if which.endswith("cnn") else ALL
    if which.startswith("every"):
        combinations = covering(combinations)
    check_killed_and_resumed_sweep(combinations, fmnist_train, tmp_path, data_root)


def check_killed_and_resumed_sweep(
    combinations: list[Combination], fmnist_train: Command, tmp_path: Path, data_root: Path
) -> None:
    experiments = tmp_path / "conf/experiment"
    experiments.mkdir(parents=True)
    for number, combination in enumerate(combinations):
        text = ["# @package _global_", "defaults:"]
        text += [f"  - override /{g}: {option}" for g, option in zip(GROUPS, combination)]
        text += FITTING.get(combination[2], [])
        (experiments / f"c{number}.yaml").write_text("\n".join(text) + "\n")
    choices = ",".join(f"c{number}" for number in range(len(combinations)))
    sweep = [
        *("-m", f"experiment={choices}", f"hydra.searchpath=[file://{tmp_path}/conf]"),
        *("data.train_size=20", "data.batch_size=20", "data.val_size=10", "trainer.epochs=2"),
        *("name=all", "hydra.launcher.workers=1"),
    ]
    kill_halfway(sweep, len(combinations), data_root)
    outcome = fmnist_train(*sweep)
    assert outcome.code == 0, outcome.err[-2000:]
    table = pd.read_csv("multirun/all/sweep.csv")
    finished = table[table.state == "COMPLETE"]
    assert sorted(finished.experiment) == sorted(choices.split(","))
    assert (finished.epochs == 2).all()
    assert set(table.state) <= {"COMPLETE", "KILLED"}


def kill_halfway(sweep: list[str], trials: int, data_root: Path) -> None:
    command = [sys.executable, "-m", "fmnist_sweep.train", *sweep]
    environment = {**os.environ, "FMNIST_SWEEP_DATA": str(data_root)}
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    while len(list(Path("multirun/all").glob("*/summary.json"))) < trials // 2:
        assert child.poll() is None
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
