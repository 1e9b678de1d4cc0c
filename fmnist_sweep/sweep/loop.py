"""A sweep from its first trial to its tables: trials asked for, run, taken in and shown."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import optuna
from rich.console import Console

from fmnist_sweep.base.command import Interrupted, interruptible
from fmnist_sweep.base.errors import (
    ImpossibleTrial,
    ProcessDied,
    StopSweep,
    TooManyFailures,
    describe,
    is_machine_fault,
)
from fmnist_sweep.base.files import make_unique_dir
from fmnist_sweep.results import ranking, record
from fmnist_sweep.results.publish import publish
from fmnist_sweep.results.tables import Run, Sweep
from fmnist_sweep.sweep.display import Display
from fmnist_sweep.sweep.hydra_job import Job
from fmnist_sweep.sweep.overrides import override_text
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import SweepStudy, tell

# The tables are written after each trial unless that would take more than this share of the time.
TABLES_SHARE = 0.05
# Trials of a search that are asked for before the first of them has ended.
AHEAD = 8
LAUNCHERS = ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins")


def ahead(settings: Settings, space: Space) -> int:
    """How many trials a process that trains stacks asks for before the first of them has ended."""
    return settings.n_jobs or (space.n_trials if space.is_grid else AHEAD)


class Loop:
    """Asks for trials, hands them to a runner and counts, until the sweep has all its trials.

    Args:
        extend: suggests further, conditional parameters.
        at_once: the most trials that are asked for before one of them has ended.
    """

    def __init__(
        self,
        study: SweepStudy,
        settings: Settings,
        run_jobs: Callable[["Loop"], None],
        extend: Callable[[optuna.Trial], None] | None,
        console: Console,
        at_once: int | None = None,
    ) -> None:
        self.study = study
        self.space = study.space
        self.settings = settings
        self.run_jobs = run_jobs
        self.at_once = at_once
        self.extend = extend
        self.begun: dict[int, Path] = {}
        self.console = console
        self.table = Sweep(study.folder)
        self.failures = 0
        self.writing = threading.Lock()
        self.written_at = 0.0
        self.writing_took = 0.0

    def run(self, is_named: bool) -> None:
        """Runs the sweep.

        Args:
            is_named: whether the very same command would go on with this sweep.

        Raises:
            SystemExit: interrupted, or stopped by failures.
        """
        folder = _relative(self.study.folder)
        way_back = "The same command goes on" if is_named else f"hydra.sweep.dir={folder} goes on"
        stopped: str | None = None
        code, is_lost = 0, False
        self._greet()
        before = list(self.table.runs.values())
        self.is_first = not before
        with Display(self.console, self.space.n_trials, before) as self.display:
            try:
                with interruptible(), _quiet_launchers():
                    self.run_jobs(self)
            except Interrupted as stop:
                code, stopped = 128 + stop.number, "Interrupted"
            except TooManyFailures as stop:
                code, stopped = 1, str(stop)
            except StopSweep as stop:
                code, stopped = 1, str(stop)
                is_lost = True
            except OSError as fault:
                if not is_machine_fault(fault):
                    raise
                code, stopped = 1, describe(fault)
                is_lost = True
            finally:
                if not is_lost:  # else the next start does it
                    self._settle()
                with suppress(OSError) if is_lost else nullcontext():
                    self.refresh(final=True)
        runs = list(self.table.runs.values())
        if runs:
            ranking.show(runs, self.console)
        # Whoever interrupts does not want to wait for pictures.
        if runs and code < 128 and not is_lost:
            publish(self.study.folder, runs)
        names = ("sweep.csv", "curves.csv", "report.html")
        there = [name for name in names if (self.study.folder / name).exists()]
        print(f"Sweep folder: {folder} ({', '.join(there)})", flush=True)
        if stopped:
            left = self.space.n_trials - len(runs)
            print(f"{stopped}, {left} trials left. {way_back}.", file=sys.stderr)
            sys.exit(code)
        if runs and all(run.state == "FAILED" for run in runs):
            sys.exit(f"All {len(runs)} trials failed, the last with: {self._last_reason()}")

    def work(self) -> None:
        """Runs trials until none is left, as one of several processes and without a word."""
        self.table.update()
        before = list(self.table.runs.values())
        self.is_first = not before
        with Display(self.console, self.space.n_trials, before) as self.display:
            try:
                with _quiet_launchers():
                    self.run_jobs(self)
            finally:
                self._settle()
                self.refresh(final=True)

    def _settle(self) -> None:
        with suppress(StopSweep):
            self.study.settle_mine()

    def _greet(self) -> None:
        """Says what is about to happen, after settling what an earlier process left."""
        again = self.study.take_over()
        self.table.update()
        folder, done = _relative(self.study.folder), len(self.table.runs)
        kind = "Grid" if self.space.is_grid else "Search"
        total = self.space.n_trials
        if done >= total:
            print(f"{kind} in {folder} is complete: {done} of {total} trials")
        elif done or again:
            rerun = f", {again} interrupted to be run again" if again else ""
            print(f"{kind} in {folder} goes on: {done} of {total} trials done{rerun}")
        else:
            print(f"{kind} of {total} trials in {folder}")
            if not self.space.is_grid and self.settings.baseline and not self.space.points:
                print("The default configuration lies outside of the space and is not tried first")
        sys.stdout.flush()

    # What runners ask and tell: see `runners.Jobs`.

    def next(self) -> Job | None:
        if self.at_once is not None and len(self.begun) >= self.at_once:
            return None
        asked = self.study.ask(self.extend)
        if asked is None:
            return None
        trial, run = asked
        self.display.started(trial.number)
        self.begun[trial.number] = run
        return trial.number, [*self.space.overrides(trial.params), *self._placed(Path(run.name))]

    def ended(self, number: int, error: Exception | None) -> None:
        run = self.begun.pop(number)
        # As when its process was killed, or its configuration cannot be composed.
        if record.summary(run) is None:
            error = error or ProcessDied("ended without a result")
            record.finish(run, "FAILED", describe(error))
            tell(self.study.address, number, run, self.settings.objective)
        self.refresh()
        # Values that do not go together say nothing of those that do.
        if not isinstance(error, ImpossibleTrial):
            self._count_failure(number)

    def has_result(self, number: int) -> bool:
        return record.summary(self.begun[number]) is not None

    def was_begun(self, number: int) -> bool:
        return any(path.name != "trial.json" for path in self.begun[number].iterdir())

    def put_back(self, numbers: Sequence[int]) -> None:
        self.study.put_back(numbers)
        for number in numbers:
            del self.begun[number]

    def done(self) -> int:
        return len(self.table.runs)

    def is_complete(self) -> bool:
        return self.done() >= self.space.n_trials

    def share(self, number: int) -> Sequence[str]:
        folder = make_unique_dir(self.study.folder / "shares" / str(number))
        return self._placed(Path("shares", folder.name))

    def take_in(self) -> None:
        self.study.take_over()
        self.refresh()

    def _placed(self, subfolder: Path) -> list[str]:
        """Has a job leave its log and configuration in a folder within the sweep's."""
        return [
            f"hydra.sweep.dir={override_text(str(self.study.folder))}",
            f"hydra.sweep.subdir={override_text(str(subfolder))}",
            "hydra.output_subdir=.hydra",
        ]

    def _count_failure(self, number: int) -> None:
        most = self.settings.max_failures
        failed = self.table.runs[number].state == "FAILED"
        self.failures = self.failures + 1 if failed else 0
        if most and failed and (self.failures >= most or (self.is_first and number == 0)):
            which = f"{self.failures} trials in a row" if self.failures > 1 else f"trial {number}"
            raise TooManyFailures(
                f"Stopped by hydra.sweeper.max_failures={most}: {which} failed, the last with: "
                f"{self._last_reason()}"
            )

    def _last_reason(self) -> str:
        failed = [run for run in self.table.runs.values() if run.state == "FAILED"]
        return str(failed[-1].summary["reason"])

    def refresh(self, final: bool = False) -> None:
        """Reads what has finished, shows it, and writes the tables."""
        with self.writing:
            new = self._read()
            due = time.monotonic() - self.written_at >= self.writing_took / TABLES_SHARE
            if final or (new and due):
                began = time.monotonic()
                with self.study.lock:
                    self._read()
                    self.table.write()
                self.written_at = time.monotonic()
                self.writing_took = self.written_at - began

    def _read(self) -> list[Run]:
        new = self.table.update()
        for run in new:
            self.display.finished(run)
        return new


def _relative(folder: Path) -> Path:
    """A path as short as it can be written."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


@contextmanager
def _quiet_launchers() -> Iterator[None]:
    """Launchers announce every job; the sweep has a line of its own for each."""
    loggers = [logging.getLogger(name) for name in LAUNCHERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
