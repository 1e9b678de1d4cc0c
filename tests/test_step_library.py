"""Steps kept on disk: the same numbers, found again, never a stranger's."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fmnist_sweep.base.files import CACHE_VARIABLE
from fmnist_sweep.engine import step_library
from fmnist_sweep.engine.data import DataSplits
from fmnist_sweep.engine.recipe import Recipe
from tests.conftest import ROOT
from tests.test_stacks import Case, train

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = {
    "adam": Case(1),
    "sgd": Case(2, optimizer=torch.optim.SGD, arguments=(("momentum", 0.9), ("nesterov", True))),
    "dropout and batch norm": Case(3, dropout=0.3, batch_norm=True),
    "recipe": Case(4, recipe=Recipe(label_smoothing=0.1, clip_norm=0.5, average=0.9)),
    "decay of weights alone": Case(
        5,
        optimizer=torch.optim.AdamW,
        arguments=(("weight_decay", 0.1),),
        recipe=Recipe(decay_all=False),
    ),
    "a batch larger than the data": Case(6, batch=500),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "steps"


def without_library(monkeypatch: pytest.MonkeyPatch, case: Case, data: DataSplits) -> Any:
    with monkeypatch.context() as patch:
        patch.setattr("fmnist_sweep.engine.workers.is_portable", lambda signature: False)
        return train([case], data)


def weights(jobs: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = jobs[0].trial.model.state_dict()
    return found


def check_same(one: Any, other: Any) -> None:
    assert one[0] == other[0]
    for mine, theirs in zip(weights(one[1]).values(), weights(other[1]).values(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", CASES)
def test_a_kept_step_has_the_same_numbers(
    name: str, cache: Path, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = without_library(monkeypatch, CASES[name], data)
    assert not cache.exists()
    check_same(train([CASES[name]], data), expected)
    kept = sorted(cache.glob("*.pt"))
    assert kept
    monkeypatch.setattr(step_library, "_trace", None)  # found again: nothing is traced
    check_same(train([CASES[name]], data), expected)
    assert sorted(cache.glob("*.pt")) == kept


@pytest.mark.slow
def test_a_kept_compiled_step_has_the_same_numbers(
    cache: Path, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = [Case(1), Case(2, lr=0.01)]
    first = train(cases, data, compile=True)
    assert len(list(cache.glob("*.so"))) == 1
    monkeypatch.setattr(step_library, "_trace", None)
    check_same(train(cases, data, compile=True), first)
    # As `torch.compile` has them.
    monkeypatch.setattr("fmnist_sweep.engine.workers.is_portable", lambda signature: False)
    check_same(train(cases, data, compile=True), first)


class Mine(nn.Linear):
    """A user's module, whose source can change."""


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (nn.Linear(2, 2), True),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU()), True),
        (Mine(2, 2), False),
        (nn.Sequential(nn.Flatten(), Mine(2, 2)), False),
    ],
)
def test_only_known_modules_are_kept(value: nn.Module, expected: bool) -> None:
    assert step_library.is_portable(pickle.dumps(value)) is expected


def test_a_signature_of_this_process_alone_is_not_kept() -> None:
    assert not step_library.is_portable(17)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\3\4"])
def test_a_damaged_file_is_made_again(content: bytes, cache: Path, data: DataSplits) -> None:
    expected = train([CASES["adam"]], data)
    files = {path: path.read_bytes() for path in cache.glob("*.pt")}
    for path in files:
        path.write_bytes(content)
    check_same(train([CASES["adam"]], data), expected)
    assert all(len(path.read_bytes()) > 1000 for path in files)


def test_files_that_never_load_are_done_without(
    cache: Path, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Path] = []

    def load(path: Path) -> Any:
        tries.append(path)
        raise RuntimeError("another format")

    expected = train([CASES["adam"]], data)
    monkeypatch.setattr(step_library, "_load_traced", load)
    check_same(train([CASES["adam"]], data), expected)
    assert len(tries) == 2 * len(set(tries)) and not list(cache.glob("*.pt"))


def test_a_folder_that_cannot_be_written_is_done_without(
    tmp_path: Path, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    assert train([CASES["adam"]], data)[0]


def test_another_environment_has_steps_of_its_own(
    cache: Path, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    train([CASES["adam"]], data)
    before = set(cache.glob("*.pt"))
    monkeypatch.setattr(step_library, "_environment", lambda: ("another processor",))
    train([CASES["adam"]], data)
    assert len(set(cache.glob("*.pt"))) == 2 * len(before)


def test_old_steps_are_removed(
    cache: Path, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_library, "MAX_FILES", {".pt": 3})
    train([CASES["adam"], Case(1, width=64)], data)
    assert len(list(cache.glob("*.pt"))) == 3


RUN = """
import sys
from fmnist_sweep import train
sys.argv = ["train", "data.train_size=640", "data.val_size=1000", "trainer.epochs=2"]
train.main()
print("compiler", "torch._dynamo" in sys.modules, "sympy", "sympy" in sys.modules)
"""


@pytest.mark.slow
def test_a_second_run_does_not_import_the_compiler(
    tmp_path: Path, data_root: Path, cache: Path
) -> None:
    environment = {
        **os.environ,
        "FMNIST_SWEEP_DATA": str(data_root),
        "PYTHONPATH": str(ROOT),
        CACHE_VARIABLE: str(cache.parent),
    }
    for expected in ("compiler True", "compiler False"):
        done = subprocess.run(
            [sys.executable, "-c", RUN],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected in done.stdout
