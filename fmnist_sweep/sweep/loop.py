"""A sweep from its first trial to its tables: trials asked for, launched, taken in and shown."""

import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, suppress
from pathlib import Path
from typing import Any

import optuna
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from rich.console import Console

from fmnist_sweep import record
from fmnist_sweep.processes import ProcessDied, call_apart
from fmnist_sweep.report import ranking
from fmnist_sweep.report.publish import publish
from fmnist_sweep.report.tables import ReportError, Run, Sweep
from fmnist_sweep.sweep.database import Lost, LostElsewhere, forget, hang_up
from fmnist_sweep.sweep.display import Display
from fmnist_sweep.sweep.interruption import Interrupted, interruptible
from fmnist_sweep.sweep.launcher import Job, StackedLauncher
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import SweepStudy, tell

log = logging.getLogger(__name__)

# The tables are written after each trial unless that would take more than this share of the time.
TABLES_SHARE = 0.05
# Trials of a search that are asked for before the first of them has ended.
AHEAD = 8
LAUNCHERS = ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins")


class TooManyFailures(Exception):
    """`hydra.sweeper.max_failures` was reached; the message says how."""


def ahead(settings: Settings, space: Space) -> int:
    """How many trials a process that trains stacks asks for before the first of them has ended."""
    return settings.n_jobs or (space.n_trials if space.is_grid else AHEAD)


def _wrong_with(returned: JobReturn) -> str | None:
    """Why a job did not come to its end.

    Raises:
        TooManyFailures: it was a share, which has met them.
        Lost: of its process.
        OSError: the disk's fault.
    """
    try:
        with redirect_stderr(io.StringIO()):  # where Hydra says that there was an error
            _ = returned.return_value
    except TooManyFailures:
        raise
    except LostElsewhere as lost:
        raise Lost(str(lost)) from None
    except Exception as error:
        if record.is_disk_fault(error):
            raise
        return _in_a_line(error)
    return None


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


class Loop:
    """Asks, launches and counts until the sweep has all its trials."""

    def __init__(
        self,
        study: SweepStudy,
        settings: Settings,
        launcher: Launcher,
        at_once: int,
        extend: Callable[[optuna.Trial], None] | None,
        console: Console,
    ) -> None:
        self.study = study
        self.space = study.space
        self.settings = settings
        self.launcher = launcher
        self.at_once = at_once
        self.extend = extend
        self.begun: dict[int, Path] = {}
        self.console = console
        self.table = Sweep(study.folder)
        self.failures = 0
        self.writing = threading.Lock()
        self.written_at = 0.0
        self.writing_took = 0.0

    def run(self, name: str | None) -> None:
        """Runs the sweep.

        Raises:
            SystemExit: interrupted, or stopped by failures.
        """
        folder = _relative(self.study.folder)
        way_back = "The same command goes on" if name else f"hydra.sweep.dir={folder} goes on"
        stopped: str | None = None
        code, is_lost = 0, False
        self._greet()
        before = list(self.table.runs.values())
        with Display(self.console, self.space.n_trials, before) as self.display:
            try:
                with interruptible(), _quiet_launchers(), self._watch():
                    self._launch_all(is_first=not before)
            except Interrupted as stop:
                code, stopped = 128 + stop.number, "Interrupted"
            except TooManyFailures as stop:
                code, stopped = 1, str(stop)
            except Lost as lost:
                code, stopped = 1, str(lost)
                is_lost = True
            except OSError as fault:
                if not record.is_disk_fault(fault):
                    raise
                code, stopped = 1, str(fault)
                is_lost = True
            finally:
                if not is_lost:  # else the next start does it
                    self._settle()
                with suppress(OSError) if is_lost else nullcontext():
                    self._refresh(final=True)
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
        with Display(self.console, self.space.n_trials, before) as self.display:
            try:
                with _quiet_launchers():
                    self._launch_all(is_first=not before)
            finally:
                self._settle()
                self._refresh(final=True)

    def _settle(self) -> None:
        with suppress(Lost):
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

    def _launch_all(self, is_first: bool) -> None:
        if isinstance(self.launcher, StackedLauncher):
            self._launch_each(is_first)
            return
        if self.settings.shares:
            self._launch_shares(self.settings.shares)
            return
        one_by_one = 0
        while batch := self._ask(1 if one_by_one else None):
            one_by_one = max(0, one_by_one - 1)
            reasons, reason = self._launch(batch)
            numbers = [number for number, _ in batch]
            lost = [n for n in numbers if record.summary(self.begun[n]) is None]
            unexplained = [number for number in lost if number not in reasons]
            if len(unexplained) > 1:  # one has taken the others with it: by itself it will again
                many = f"{len(unexplained)} trials go on, each by itself"
                print(f"{reason}; {many}", file=sys.stderr)
                self.study.put_back(unexplained)
                for number in unexplained:
                    numbers.remove(number)
                    del self.begun[number]
                one_by_one += len(unexplained)
            for number in numbers:
                self._ended(number, reasons.get(number, reason))
            for number in numbers:
                self._count_failure(number, is_first)

    def _launch(self, batch: list[Job]) -> tuple[dict[int, str], str]:
        """Runs a batch to its end.

        Returns:
            What went wrong with single trials, and why others may be without a result.

        Raises:
            TooManyFailures: the launcher itself fails.
        """
        returns: list[JobReturn] = []
        reason = "the launcher returned without it"

        def launch() -> None:
            jobs = [job for _, job in batch]
            returns.extend(self.launcher.launch(jobs, initial_job_idx=batch[0][0]))

        def launch_apart() -> None:
            forget()
            launch()
            for returned in returns:  # what is not raised here the fork does not bring back
                _wrong_with(returned)

        try:
            if isinstance(self.launcher, BasicLauncher):
                hang_up()
                call_apart(launch_apart)
            else:
                launch()
        except ProcessDied as death:
            reason = str(death)
        except Exception as error:
            if record.is_disk_fault(error):
                raise
            reason = _in_a_line(error)
            if not any(_was_begun(self.begun[number]) for number, _ in batch):
                self.study.put_back([number for number, _ in batch])
                raise TooManyFailures(f"Stopped: the launcher starts no job ({reason})") from None
        explained = zip(batch, map(_wrong_with, returns))
        return {number: wrong for (number, _), wrong in explained if wrong}, reason

    def _launch_shares(self, shares: int) -> None:
        """Each job of the launcher takes trials until none is left; again if some have died.

        Raises:
            TooManyFailures: the trials or the shares themselves fail.
        """
        while (done := len(self.table.runs)) < self.space.n_trials:
            folders = [record.reserve(self.study.folder / "shares" / str(n)) for n in range(shares)]
            jobs = [self._placed(Path("shares", folder.name)) for folder in folders]
            reason = "they ended without it"
            try:
                for returned in self.launcher.launch(jobs, initial_job_idx=0):
                    reason = _wrong_with(returned) or reason
            except TooManyFailures:
                raise
            except Exception as error:  # as when a share's process has died
                reason = _in_a_line(error)
            self.study.take_over()
            self._refresh()
            if len(self.table.runs) == done:
                raise TooManyFailures(f"Stopped: {shares} shares finished no trial ({reason})")

    def _launch_each(self, is_first: bool) -> None:
        """Without batches: as one trial ends another is asked for."""

        def next_job() -> Job | None:
            asked = self._ask(1) if len(self.begun) < self.at_once else []
            return asked[0] if asked else None

        def on_end(number: int, returned: JobReturn) -> None:
            self._ended(number, _wrong_with(returned) or "ended without a result")
            self._count_failure(number, is_first)

        assert isinstance(self.launcher, StackedLauncher)
        self.launcher.launch_each(next_job, on_end)

    def _ask(self, most: int | None = None) -> list[Job]:
        """The next trials, as many as run side by side, each with its command line."""
        batch: list[Job] = []
        while len(batch) < (most or self.at_once) and (asked := self.study.ask(self.extend)):
            trial, run = asked
            self.display.started(trial.number)
            self.begun[trial.number] = run
            batch.append((trial.number, self._overrides(run, trial.params)))
        return batch

    def _overrides(self, run: Path, params: dict[str, Any]) -> list[str]:
        return [*self.space.overrides(params), *self._placed(Path(run.name))]

    def _placed(self, subfolder: Path) -> list[str]:
        """Has a job leave its log in a folder within the sweep's, and be silent otherwise."""
        folder = str(self.study.folder).replace("'", "\\'")
        return [
            f"hydra.sweep.dir='{folder}'",
            f"hydra.sweep.subdir='{subfolder}'",
            "hydra.job_logging.handlers.console.level=CRITICAL",
        ]

    def _ended(self, number: int, reason: str) -> None:
        """Takes in a trial that has ended, with why if it could not say so itself."""
        run = self.begun.pop(number)
        # As when its process was killed or its disk is full.
        if record.summary(run) is None:
            record.finish(run, "FAILED", reason)
            tell(self.study.address, number, run, self.settings.objective)
        self._refresh()

    def _count_failure(self, number: int, is_first: bool) -> None:
        most = self.settings.max_failures
        failed = self.table.runs[number].state == "FAILED"
        self.failures = self.failures + 1 if failed else 0
        if most and failed and (self.failures >= most or (is_first and number == 0)):
            which = f"{self.failures} trials in a row" if self.failures > 1 else f"trial {number}"
            raise TooManyFailures(
                f"Stopped by hydra.sweeper.max_failures={most}: {which} failed, the last with: "
                f"{self._last_reason()}"
            )

    def _last_reason(self) -> str:
        failed = [run for run in self.table.runs.values() if run.state == "FAILED"]
        return str(failed[-1].summary["reason"])

    def _refresh(self, final: bool = False) -> None:
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

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Refreshes while a launcher is at work on a batch."""
        done = threading.Event()

        def refresh() -> None:
            while not done.wait(0.5):
                with suppress(OSError, ReportError):  # which the loop itself meets as well
                    self._refresh()

        alone = self.at_once == 1 and not self.settings.shares
        if alone or isinstance(self.launcher, StackedLauncher):
            yield
            return
        watcher = threading.Thread(target=refresh, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _was_begun(run: Path) -> bool:
    """Whether a job has come so far as to leave anything."""
    return any(path.name != "trial.json" for path in run.iterdir())


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
