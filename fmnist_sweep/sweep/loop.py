"""A sweep's main loop: ask for trials, run them, display results and write the tables."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import optuna
from rich.console import Console

from fmnist_sweep.base.background import Background
from fmnist_sweep.base.command import Interrupted, import_beside, interruptible
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
from fmnist_sweep.results.tables import Run, Sweep
from fmnist_sweep.sweep.budget import Budget
from fmnist_sweep.sweep.display import Display
from fmnist_sweep.sweep.hydra_job import Job
from fmnist_sweep.sweep.overrides import override_text
from fmnist_sweep.sweep.pbt import Pbt
from fmnist_sweep.sweep.runners import Runner
from fmnist_sweep.sweep.settings import Settings
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import SweepStudy, TakenTrial, tell

# The largest share of the time that is spent on writing tables.
TABLES_SHARE = 0.05
SEEDS_APART = 10_000  # between trials with the same parameters, so that their repeats differ too
# How long a sweep that has ended waits for pictures: seconds, and a share of its time.
PICTURES_SECONDS, PICTURES_SHARE = 10.0, 0.02
# Trials of a search in stacks that are begun before the first of them has ended.
AHEAD = 8
LAUNCHERS = ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins")


def trials_at_once(settings: Settings, space: Space, runner: Runner) -> int:
    """Return the number of trials that a process that trains in stacks begins at once.

    A grid and a population (`pbt.Pbt`) begin all their trials. A search, or a grid with a
    scheduler, begins as many as the runner's `ahead`, or else `AHEAD`. `hydra.sweeper.n_jobs`
    changes that.
    """
    if isinstance(settings.scheduler, Pbt):
        return space.n_trials
    ahead: int = getattr(runner, "ahead", AHEAD)
    return settings.n_jobs or (
        space.n_trials if space.is_grid and not settings.scheduler else ahead
    )


class SweepLoop:
    """The loop that passes trials to a runner until the sweep has all its trials.

    It is both the `runners.JobSource` and the `runners.WorkerJobSource` of its runner.

    Args:
        run_jobs: the runner's `run`.
        extend: suggests further, conditional parameters.
        at_once: the maximum number of trials that have begun and not ended; None for no limit.
    """

    def __init__(
        self,
        study: SweepStudy,
        budget: Budget,
        run_jobs: Callable[["SweepLoop"], None],
        extend: Callable[[optuna.Trial], None] | None,
        console: Console,
        at_once: int | None = None,
    ) -> None:
        self.study = study
        self.space = study.space
        self.settings = budget.settings
        self.budget = budget
        self.reason_to_stop: str | None = None
        self.run_jobs = run_jobs
        self.at_once = at_once
        self.extend = extend
        self.background = Background()
        self.begun: dict[int, Path] = {}
        self.console = console
        self.table = Sweep(study.folder)
        self.failures = 0
        self.writing = threading.Lock()
        self.written_at = 0.0
        self.writing_took = 0.0

    def run(self, is_named: bool) -> None:
        """Run the sweep.

        Args:
            is_named: whether the same command would resume this sweep.

        Raises:
            SystemExit: interrupted, or stopped by failures.
        """
        folder = _relative(self.study.folder)
        resume_hint = (
            "Run the same command to resume"
            if is_named
            else f"Add hydra.sweep.dir={folder} to resume"
        )
        stopped: str | None = None
        code, is_lost = 0, False
        began = time.monotonic()
        self._announce()
        import_beside("fmnist_sweep.results.publish")
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
                if not is_lost:  # otherwise the next start releases them
                    self._release_own()
                with suppress(OSError) if is_lost else nullcontext():
                    self.refresh(final=True)
        runs = list(self.table.runs.values())
        if runs:
            ranking.show(runs, self.console)
        # A user who interrupts does not want to wait for plots.
        waits = code < 128 and not is_lost
        if runs and waits:
            from fmnist_sweep.results import advice, publish

            advice.show(self.study.folder, runs)
            publish.publish(self.study.folder, runs)
        elif runs and not is_lost:  # of an interrupted sweep the page alone, which takes no time
            from fmnist_sweep.results import publish

            publish.write_page(self.study.folder, runs)
        n_undrawn = self._finish_pictures(began) if waits else 0
        names = ("sweep.csv", "curves.csv", "report.html")
        files = [name for name in names if (self.study.folder / name).exists()]
        print(f"Sweep folder: {folder} ({', '.join(files)})", flush=True)
        if n_undrawn:
            print(
                f"Not drawn yet: results.png of {n_undrawn} trials; "
                f"python -m fmnist_sweep.report {folder} draws them"
            )
        left = self.space.n_trials - self.n_ended()
        if self.reason_to_stop and left > 0 and not stopped:
            paused = (
                f", {len(runs) - self.n_ended()} of them paused" if self.settings.scheduler else ""
            )
            print(f"Ended with {left} trials left{paused}. {self.reason_to_stop}")
        if stopped:
            print(f"{stopped}, {left} trials left. {resume_hint}.", file=sys.stderr)
            sys.exit(code)
        if runs and all(run.state == "FAILED" for run in runs):
            sys.exit(f"All {len(runs)} trials failed, the last with: {self._last_reason()}")

    def run_as_worker(self) -> None:
        """Run trials until none is left, as one of several processes, without messages."""
        began = time.monotonic()
        self.table.update()
        before = list(self.table.runs.values())
        self.is_first = not before
        with Display(self.console, self.space.n_trials, before) as self.display:
            try:
                with _quiet_launchers():
                    self.run_jobs(self)
            finally:
                self._release_own()
                self.refresh(final=True)
        self._finish_pictures(began)

    def _finish_pictures(self, began: float) -> int:
        """Wait for pictures of trials for some time; return how many are left out."""
        return self.background.close(
            max(PICTURES_SECONDS, PICTURES_SHARE * (time.monotonic() - began))
        )

    def _release_own(self) -> None:
        with suppress(StopSweep):
            self.study.release_own()

    def _announce(self) -> None:
        """Reclaim abandoned trials, then print what the sweep is about to do."""
        n_requeued = self.study.reclaim_abandoned()
        self.table.update()
        folder, done = _relative(self.study.folder), self.n_ended()
        design = "Grid" if self.space.is_grid else "Search"
        total = self.space.n_trials
        if done >= total:
            print(f"{design} in {folder} is complete: {done} of {total} trials")
        elif done or n_requeued:
            rerun = f", {n_requeued} interrupted to be run again" if n_requeued else ""
            print(f"{design} in {folder} resumes: {done} of {total} trials done{rerun}")
        else:
            print(f"{design} of {total} trials in {folder}")
            if not self.space.is_grid and self.settings.baseline and not self.space.initial_points:
                print("The default configuration lies outside of the space and is not tried first")
        sys.stdout.flush()

    # The interface for runners: see `runners.JobSource` and `runners.WorkerJobSource`.

    def take(self, count: int) -> list[Job]:
        if self._is_over():
            return []
        if self.at_once is not None:
            count = min(count, self.at_once - len(self.begun))
        jobs: list[Job] = []
        for trial in self.study.take(count, self.extend) if count > 0 else []:
            self.display.started(trial.number, trial.run)
            self.begun[trial.number] = trial.run
            overrides = [*self.space.overrides(trial.params), *self._other_seed(trial)]
            jobs.append((trial.number, [*overrides, *self._folder_overrides(Path(trial.run.name))]))
        return jobs

    def _other_seed(self, trial: TakenTrial) -> list[str]:
        """Return an override of the seed for a trial whose parameters were tried before.

        With the same seed it would be the same run again. Without a seed there is no override.
        """
        key, seed = str(self.settings.seed_key), None
        if trial.again and key not in self.space.distributions:
            seed = self.space.base.get(key)
        return [f"{key}={seed + SEEDS_APART * trial.again}"] if isinstance(seed, int) else []

    def _is_over(self) -> bool:
        """Return whether no further trial may begin, though some may be left."""
        if self.reason_to_stop is None:
            self.reason_to_stop = self.budget.reason_to_stop(list(self.table.runs.values()))
        return self.reason_to_stop is not None

    def ended(self, number: int, error: Exception | None) -> None:
        run = self.begun.pop(number)
        # A killed process or a configuration that cannot be composed leaves no result.
        if record.summary(run) is None:
            error = error or ProcessDied("ended without a result")
            record.finish(run, "FAILED", describe(error))
            tell(self.study.address, number, run, self.settings.objective)
        with self.writing:
            if ended := self.table.add(number, run):
                self.display.finished(ended)
            self._write_when_due(new=True)
        # Values that do not go together are no sign that other trials will fail.
        if not isinstance(error, ImpossibleTrial):
            self._count_failure(number)

    def has_result(self, number: int) -> bool:
        return record.summary(self.begun[number]) is not None

    def has_started(self, number: int) -> bool:
        return any(path.name != "trial.json" for path in self.begun[number].iterdir())

    def requeue(self, numbers: Sequence[int]) -> None:
        self.study.requeue(numbers)
        for number in numbers:
            del self.begun[number]

    def n_ended(self) -> int:
        return sum(run.state != "PAUSED" for run in self.table.runs.values())

    def is_complete(self) -> bool:
        return self.n_ended() >= self.space.n_trials or self._is_over()

    def worker_overrides(self, number: int) -> Sequence[str]:
        folder = make_unique_dir(self.study.folder / "shares" / str(number))
        return self._folder_overrides(Path("shares", folder.name))

    def reclaim_abandoned(self) -> None:
        self.study.reclaim_abandoned()
        self.refresh()

    def _folder_overrides(self, subfolder: Path) -> list[str]:
        """Return overrides with which a job keeps its log and configuration in a subfolder."""
        return [
            f"hydra.sweep.dir={override_text(str(self.study.folder))}",
            f"hydra.sweep.subdir={override_text(str(subfolder))}",
            "hydra.output_subdir=.hydra",
        ]

    def _count_failure(self, number: int) -> None:
        limit = self.settings.max_failures
        failed = self.table.runs[number].state == "FAILED"
        self.failures = self.failures + 1 if failed else 0
        if limit and failed and (self.failures >= limit or (self.is_first and number == 0)):
            which = f"{self.failures} trials in a row" if self.failures > 1 else f"trial {number}"
            raise TooManyFailures(
                f"Stopped by hydra.sweeper.max_failures={limit}: {which} failed, the last with: "
                f"{self._last_reason()}"
            )

    def _last_reason(self) -> str:
        failed = [run for run in self.table.runs.values() if run.state == "FAILED"]
        return str(failed[-1].summary["reason"])

    def refresh(self, final: bool = False) -> None:
        """Display newly finished runs and write the tables.

        Writing the tables takes at most about `TABLES_SHARE` of the time.

        Args:
            final: write the tables in any case.
        """
        with self.writing:
            self._write_when_due(bool(self._read_finished()), final)

    def _write_when_due(self, new: bool, final: bool = False) -> None:
        due = time.monotonic() - self.written_at >= self.writing_took / TABLES_SHARE
        if final or (new and due):
            began = time.monotonic()
            with self.study.lock:
                self._read_finished()
                self.table.write()
                self.budget.save()
            self.written_at = time.monotonic()
            self.writing_took = self.written_at - began

    def _read_finished(self) -> list[Run]:
        new = self.table.update()
        for run in new:
            self.display.finished(run)
        return new


def _relative(folder: Path) -> Path:
    """Return a path relative to the working directory if it lies below it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


@contextmanager
def _quiet_launchers() -> Iterator[None]:
    """Silence the launchers' line per job: the sweep prints its own line per trial."""
    loggers = [logging.getLogger(name) for name in LAUNCHERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
