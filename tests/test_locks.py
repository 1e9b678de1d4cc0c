"""Locks between processes, with and without what Windows lacks."""

import multiprocessing
import os
from pathlib import Path

import pytest

from fmnist_sweep.base import locks, processes
from fmnist_sweep.base.locks import FolderLock, LifeLock
from fmnist_sweep.engine import stack
from fmnist_sweep.engine.data import DataSplits


@pytest.fixture(params=["as here", "as on Windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "as on Windows":
        monkeypatch.setattr(locks, "fcntl", None)
    return str(request.param)


def held_elsewhere(path: Path, without: bool) -> tuple[bool, bool]:
    """In a process of its own: whether a life's file and a folder are another's."""
    if without:
        locks.fcntl = None  # type: ignore[assignment]
    try:
        FolderLock(path.parent)
        folder = False
    except BlockingIOError:
        folder = True
    return LifeLock.is_held(path), folder


@pytest.mark.slow
def test_a_lock_is_seen_by_another_process(system: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    path, without = folder / "life.lock", system == "as on Windows"

    def look() -> tuple[bool, bool]:
        found = processes.call_in_process(
            lambda: held_elsewhere(path, without), "fmnist_sweep.base.locks"
        )
        assert isinstance(found, tuple)
        return found

    life, lock = LifeLock(path), FolderLock(folder)
    assert look() == (True, True)
    life.close()
    del lock
    assert not path.exists() and look() == (False, False)
    path.touch()  # as a process leaves it that was killed
    assert not LifeLock.is_held(path)


def test_memory_that_nobody_tells_of_bounds_no_stack(
    data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from torch import nn

    from fmnist_sweep.engine.step import Trial

    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    trial = Trial(model, torch.optim.Adam, {"lr": 0.1}, 0, 1)
    assert stack.max_stack_size(trial, 32, data) > 8
    monkeypatch.setattr(os, "sysconf_names", {})
    assert stack.max_stack_size(trial, 32, data) > 8


def test_without_a_fork_server_processes_are_spawned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert processes.fork_server("os").get_start_method() == "spawn"
    assert processes.call_in_process(os.getpid, "os") != os.getpid()
