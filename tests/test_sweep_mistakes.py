"""A user's mistakes: a few lines, exit code 1, and neither a folder nor a study."""

import errno
import os
import socket
from pathlib import Path

import pytest

from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import record
from fmnist_sweep.sweep import begin, database
from tests.conftest import Command

SEARCH = "optimizer.lr=tag(log,interval(1e-4,1e-2))"


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


MISTAKES = {
    "unknown key": (["optimizer.rl=0.1,0.2"], ["optimizer.rl", "did you mean optimizer.lr?"]),
    "unknown key of a search": (["optimizer.rl=interval(0.1,0.2)"], ["did you mean optimizer.lr?"]),
    "wrong type": (["data.batch_size=32,many"], ["data.batch_size=many", "integer"]),
    "out of range": (["optimizer.lr=0.1,-1"], ["optimizer.lr=-1", "> 0"]),
    "range beyond the end": (["model.dropout=interval(0,1)"], ["model.dropout=1.0", "< 1"]),
    "fraction of an epoch": (["trainer.epochs=interval(0.5,3)"], ["trainer.epochs=0.5", "integer"]),
    "unknown option": (["optimizer=adam,lion"], ["lion", "adamw"]),
    "no such argument": (["+optimizer.beta=1,2"], ["optimizer.beta", "betas"]),
    "nothing swept": (["trainer.epochs=1"], ["-m sweeps nothing", "search=mlp"]),
    "upside down": (["optimizer.lr=interval(1,0.1)"], ["optimizer.lr=interval(1,0.1)"]),
    "log from zero": (["optimizer.lr=tag(log,interval(0,1))"], ["optimizer.lr=", "log"]),
    "no trials": ([SEARCH, "hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials=0", ">= 1"]),
    "unknown setting": ([SEARCH, "hydra.sweeper.trials=3"], ["hydra.sweeper.trials"]),
    "unknown sampler": ([SEARCH, "hydra/sweeper/sampler=best"], ["best", "tpe"]),
    "sampler's argument": (
        [SEARCH, "hydra.sweeper.sampler.n_ei_candidates=many"],
        ["n_ei_candidates", "many"],
    ),
    "unknown pruner": ([SEARCH, "hydra/sweeper/pruner=best"], ["best", "median"]),
    "pruner's argument": (
        [SEARCH, "hydra/sweeper/pruner=percentile", "hydra.sweeper.pruner.percentile=400"],
        ["hydra.sweeper.pruner", "100"],
    ),
    "foreign pruner": (
        [SEARCH, "hydra.sweeper.pruner._target_=os.system"],
        ["hydra.sweeper.pruner._target_=os.system"],
    ),
    "unknown direction": (
        [SEARCH, "hydra.sweeper.direction=upwards"],
        ["hydra.sweeper.direction=upwards", "minimize"],
    ),
    "unknown objective": (
        [SEARCH, "hydra.sweeper.objective=val_acc"],
        ["hydra.sweeper.objective=val_acc", "val_accuracy"],
    ),
    "a direction too few": (
        [
            SEARCH,
            "hydra.sweeper.objective=[val_accuracy,seconds]",
            "hydra.sweeper.direction=maximize",
        ],
        ["hydra.sweeper.direction", "each"],
    ),
    "pruning two objectives, one of which only the end has": (
        ["search=two_objectives", "hydra/sweeper/pruner=median"],
        ["each epoch", "not seconds", "pruner=none"],
    ),
    "a pruner for one objective": (
        [
            SEARCH,
            "hydra.sweeper.objective=[val_loss,val_accuracy]",
            "hydra/sweeper/pruner=hyperband",
        ],
        ["one objective", "median, percentile or none", "scheduler=asha"],
    ),
    "pruning on seconds": (
        [SEARCH, "hydra.sweeper.objective=seconds", "hydra/sweeper/pruner=median"],
        ["each epoch", "pruner=none"],
    ),
    "sampler for one objective": (
        ["search=two_objectives", "hydra/sweeper/sampler=cmaes"],
        ["hydra/sweeper/sampler"],
    ),
    "unknown storage": (
        [SEARCH, "hydra.sweeper.storage=oracle9://host/db"],
        ["hydra.sweeper.storage=oracle9", "sqlite:///"],
    ),
    "storage is no URL": (
        [SEARCH, "hydra.sweeper.storage=study"],
        ["hydra.sweeper.storage=study", "sqlite:///"],
    ),
    "server down": (
        [
            SEARCH,
            f"hydra.sweeper.storage='postgresql+psycopg://me@127.0.0.1:{unused_port()}/d'",
        ],
        ["hydra.sweeper.storage=postgresql", "refused"],
    ),
    "key twice": (["optimizer.lr=0.1,0.2", "optimizer.lr=0.3"], ["optimizer.lr", "2 times"]),
    "bad syntax": (["optimizer.lr=[0.1,0.2"], ["optimizer.lr"]),
    "huge grid": (
        ["seed=range(0,100000)", "data.batch_size=1,2"],
        ["grid", "200,000"],
    ),
    "huge range": (["seed=range(0,1000000000)"], ["seed=range(0,1000000000)", "100,000 values"]),
    "huge range of fractions": (
        ["optimizer.lr=range(0.001,1,1e-9)", "seed=1,2"],
        ["optimizer.lr=range(0.001,1,1e-9)", "100,000 values"],
    ),
    "a choice among good ones": (
        ["model=resnet18", "model.image_size=32,48,64"],
        ["model.image_size=48", "32, 64 or 224"],
    ),
    "a batch of one image": (
        ["model.batch_norm=true", "data.train_size=201", "data.batch_size=64,100,128"],
        ["data.batch_size=100", "batch of one"],
    ),
    "a search for what is given": (
        ["search=lr", "optimizer.lr=0.1"],
        ["-m sweeps nothing", "optimizer.lr has one value"],
    ),
    "no Slurm here": (
        ["seed=1,2", "hydra/launcher=submitit_slurm"],
        ["hydra/launcher", "srun"],
    ),
    "folder is a file": (["seed=1,2", "hydra.sweep.dir=file/x"], ["hydra.sweep.dir", "directory"]),
    "folder that cannot be": (["seed=1,2", "hydra.sweep.dir=/proc/x"], ["hydra.sweep.dir=/proc/x"]),
    "no stack": (
        ["seed=1,2", "hydra.launcher.max_stack=0"],
        ["hydra.launcher.max_stack=0", ">= 1"],
    ),
    "no workers": (["seed=1,2", "hydra.launcher.workers=0"], ["hydra.launcher.workers=0", ">= 1"]),
    "no repeats": (["seed=1,2", "repeats=0"], ["repeats=0", ">= 1"]),
    "model is no module": (
        ["seed=1,2", "model._target_=torch.nn.modules.conv.Any"],
        ["model._target_=torch.nn.modules.conv.Any"],
    ),
    "password in a query": (
        ["seed=1,2", "hydra.sweeper.storage='postgresql+psycopg://h/d?user=me&password=secret'"],
        ["hydra.sweeper.storage=", "PGPASSWORD"],
    ),
    "password for a logger": (
        ["seed=1,2", "logger.uri=https://me:secret@host"],
        ["logger.uri", "MLFLOW_TRACKING_PASSWORD"],
    ),
    "bad name": (["seed=1,2", "name=a/b"], ["name=a/b", "letters"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_told_before_anything_exists(fmnist_train: Command, mistake: str) -> None:
    arguments, expected = MISTAKES[mistake]
    Path("file").write_text("")
    outcome = fmnist_train("-m", *arguments)
    database.disconnect()
    assert outcome.code == 1
    assert all(text in outcome.err for text in expected), outcome.err
    assert 1 <= len(outcome.err.splitlines()) <= 6, outcome.err
    assert "Traceback" not in outcome.err and "secret" not in outcome.err
    assert os.listdir() == ["file"], "something was left behind"


def test_malformed_yaml(fmnist_train: Command) -> None:
    Path("mine/search").mkdir(parents=True)
    Path("mine/search/broken.yaml").write_text("# @package _global_\nhydra: [unclosed\n")
    outcome = fmnist_train("-m", "--config-dir=mine", "search=broken")
    assert outcome.code == 1 and "broken.yaml" in outcome.err
    assert len(outcome.err.splitlines()) <= 6 and "Traceback" not in outcome.err
    assert os.listdir() == ["mine"]


def test_full_disk(fmnist_train: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    real = os.replace

    def full(source: object, target: object) -> None:
        with open("/dev/full", "w") as device:
            device.write("x")
        real(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", full)
    outcome = fmnist_train("-m", "seed=1,2", "name=a")
    assert outcome.code == 1 and "No space left" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("multirun/a").exists()


@pytest.mark.parametrize("full_at", ["study.json", "multirun.yaml"])
def test_a_disk_full_at_the_start_spoils_no_name(
    full_at: str, tiny: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database elsewhere knows the sweep by then."""
    real = write_atomically

    def write(path: Path, content: bytes | str) -> None:
        if path.name == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, content)

    storage = f"hydra.sweeper.storage=sqlite:///{Path('elsewhere.db').absolute()}"
    sweep = ("-m", "seed=1,2", "trainer.epochs=1", "name=a", storage)
    with monkeypatch.context() as patch:
        for module in (record, begin):
            patch.setattr(module, "write_atomically", write)
        outcome = tiny(*sweep)
    assert outcome.code == 1 and len(outcome.err.splitlines()) == 1
    assert "No space left on device" in outcome.err
    assert tiny(*sweep).code == 0
    database.disconnect()


STOCK = {"0/summary.json": '{"state": "COMPLETE"}'}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such folder"),
        ({}, "holds no finished run"),
        ({"0/summary.json": "{torn"}, "0"),
        ({"0/summary.json": '{"state": "COMPLETE"}'}, "0/.hydra/overrides.yaml"),
        ({**STOCK, "0/.hydra/overrides.yaml": "[1, 2]"}, "not a list of overrides"),
        ({**STOCK, "0/.hydra/overrides.yaml": "- a\n[torn"}, "not YAML"),
        ({**STOCK, "0/.hydra/overrides.yaml": "[" * 10**5}, "not YAML"),
        ({**STOCK, "0/.hydra/overrides.yaml/a": ""}, "not YAML"),
        (
            {
                "0/summary.json": f'{{"state": "COMPLETE", "seed": {10**30}}}',
                "0/.hydra/overrides.yaml": "[]",
            },
            "0: not a run: seed: ",
        ),
    ],
)
def test_report_of_what_is_no_sweep(
    report: Command, content: dict[str, str] | None, expected: str
) -> None:
    if content is not None:
        Path("sweep").mkdir()
        for name, text in content.items():
            Path("sweep", name).parent.mkdir(parents=True, exist_ok=True)
            Path("sweep", name).write_text(text)
    outcome = report("sweep")
    assert outcome.code == 1 and expected in outcome.err
    assert len(outcome.err.splitlines()) == 1 and "Traceback" not in outcome.err
    assert not Path("sweep/sweep.csv").exists()
