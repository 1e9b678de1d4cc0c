"""Kills a sweep again and again until it is complete.

python -m tests.kill_repeatedly KILLS SEED OVERRIDES...: the seed decides on moments and on whether
the process alone or its whole group is killed.

The sweep runs in children forked from this process, which has imported everything: they get to
work at once. Prints the number of kills. After each, the tables must be whole and no finished run
may have changed.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import pandas as pd

from fmnist_sweep.sweep import begin
from tests import tiny_task

assert begin  # imported for the children
RUNS = Path("multirun/a")


def begin(arguments: list[str]) -> int:
    """Starts the sweep in a child."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 1
    try:
        with open("log.txt", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        sys.argv = ["tiny_task", *arguments]
        tiny_task.main()
        code = 0
    finally:
        os._exit(code)


def ends_within(child: int, seconds: float, group: bool, begun: int | None = None) -> bool:
    """Waits for a child; kills it if it is not done in time.

    Args:
        group: kill all processes that it has started with it.
        begun: the time counts from when more runs than these have begun.
    """
    until = None
    while until is None or time.monotonic() < until:
        if until is None and (begun is None or len(list(RUNS.glob("*/trial.json"))) > begun):
            until = time.monotonic() + seconds
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0, Path("log.txt").read_text()[-2000:]
            return True
        time.sleep(0.005)
    (os.killpg if group else os.kill)(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def finished() -> dict[str, tuple[bytes, int]]:
    """Content and age of every finished run's final row."""
    return {
        path.parent.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in RUNS.glob("*/summary.json")
    }


def main() -> None:
    """The command."""
    wanted, seed, arguments = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    print(f"Seed {seed}", flush=True)
    kills = 0
    moments = random.Random(seed)
    before: dict[str, tuple[bytes, int]] = {}
    while True:
        enough = kills >= wanted
        # Most kills hit trials at work, every fourth any moment since the start.
        begun = None if kills % 4 == 3 or enough else len(list(RUNS.glob("*/trial.json")))
        seconds = 600 if enough else moments.uniform(0, 0.5)
        if ends_within(begin(arguments), seconds, moments.random() < 0.5, begun):
            assert enough, f"complete after {kills} kills"
            break
        kills += 1
        now = finished()
        assert before.items() <= now.items(), "a finished run was changed"
        before = now
        for name in ("sweep.csv", "curves.csv"):
            if (RUNS / name).exists():
                pd.read_csv(RUNS / name)
    assert before.items() <= finished().items(), "a finished run was changed"
    print(f"{kills} kills, {len(before)} of the runs had finished by the last")


if __name__ == "__main__":
    main()
