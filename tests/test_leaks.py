"""A long sweep takes no more memory, files and threads at its end than after its first trials."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

N_TRIALS = 2000
MARKS = (200, 500, 1000, 1500, 1999)
SWEEPS = {
    "stacked": ("fmnist_sweep.train", "hydra.launcher.workers=1"),
    "basic": ("tests.tiny_task", "hydra/launcher=basic"),
    "joblib": ("tests.tiny_task", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
}


def family(process: int) -> list[int]:
    """A process and all that it has started."""
    children = Path(f"/proc/{process}/task").glob("*/children")
    listed = [int(child) for path in children for child in path.read_text().split()]
    return [process, *(one for child in listed for one in family(child))]


def held(process: int) -> tuple[float, int, int]:
    """Its memory in MB (of what it shares its part), open files and threads."""
    folder = Path(f"/proc/{process}")
    memory = re.findall(r"^Pss: +(\d+) kB", (folder / "smaps_rollup").read_text(), re.MULTILINE)
    threads = re.findall(r"Threads:\s+(\d+)", (folder / "status").read_text())
    return sum(map(int, memory)) / 1000, len(os.listdir(folder / "fd")), int(threads[0])


def together(process: int) -> tuple[float, int, int]:
    """The most that a process and all that it has started were seen to hold in two seconds, as a
    fork that begins or ends is counted by halves."""
    seen = []
    for _ in range(20):
        all_held = []
        for one in family(process):
            try:
                all_held.append(held(one))
            except OSError:  # it has just ended
                continue
        memory, files, threads = (sum(column) for column in zip(*all_held))
        seen.append((round(memory), int(files), int(threads)))
        time.sleep(0.1)
    memory, files, threads = (max(column) for column in zip(*seen))
    return memory, files, threads


def seen_of(
    process: subprocess.Popen[str], kind: str
) -> Iterator[tuple[int, tuple[float, int, int]]]:
    """What a sweep and all that it has started hold after so many trials."""
    assert process.stdout
    for line in process.stdout:
        done = re.match(r"\[(\d+)/", line)
        if done and int(done[1]) in MARKS:
            seen = together(process.pid)
            print(f"{kind}: after {done[1]} trials {seen}", flush=True)
            yield int(done[1]), seen


@pytest.mark.torture
@pytest.mark.parametrize("kind", SWEEPS)
def test_two_thousand_trials(kind: str, tmp_path: Path, data_root: Path) -> None:
    small = ("data.train_size=640", "data.val_size=100", "trainer.epochs=1", "data.batch_size=64")
    space = ("optimizer.lr=tag(log,interval(1e-4,1e-1))", "hydra/sweeper/sampler=random")
    module, *where = SWEEPS[kind]
    with subprocess.Popen(
        [
            *(sys.executable, "-m", module, "-m", "name=a", *small, *space, *where),
            *(f"hydra.sweeper.n_trials={N_TRIALS}", "trainer.compile=false"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FMNIST_SWEEP_DATA": str(data_root)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        seen = dict(seen_of(process, kind))
        assert process.wait() == 0
    first, last = seen[MARKS[0]], seen[MARKS[-1]]
    assert last[0] < first[0] * 1.1 + 50, seen
    assert last[1] <= first[1] + 10 and last[2] <= first[2] + 5, seen
