"""A whole sweep: its command line checked, its folder made, its trials run, its tables written."""

import logging
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import optuna
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fmnist_sweep import record
from fmnist_sweep.cli import hydra_line
from fmnist_sweep.config import ConfigError, trusted_targets
from fmnist_sweep.report import ranking
from fmnist_sweep.report.publish import publish
from fmnist_sweep.report.tables import Run, Sweep
from fmnist_sweep.sweep import settings as settings_file
from fmnist_sweep.sweep import space as space_file
from fmnist_sweep.sweep import together
from fmnist_sweep.sweep.display import Display
from fmnist_sweep.sweep.job import SweepJob
from fmnist_sweep.sweep.launcher import Job, StackedLauncher
from fmnist_sweep.sweep.settings import Settings, make_sampler
from fmnist_sweep.sweep.space import Space
from fmnist_sweep.sweep.study import Lost, SweepStudy, check_written, reachable, tell

log = logging.getLogger(__name__)

# The tables are written after each trial unless that would take more than this share of the time.
TABLES_SHARE = 0.05
# Trials of a search that are asked for before the first of them has ended.
AHEAD = 8
LAUNCHERS = ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins")


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class TooManyFailures(Exception):
    """`hydra.sweeper.max_failures` was reached; the message says how."""


def sweep(
    arguments: Sequence[str],
    values: Mapping[str, Any],
    config: DictConfig,
    context: HydraContext,
    task: TaskFunction,
) -> None:
    """Runs a sweep, or what is left of it.

    Args:
        arguments: the command line's overrides, without those of `hydra.*`.
        values: `hydra.sweeper`.

    Raises:
        ConfigError: a user's mistake; nothing has been begun.
        SystemExit: interrupted (130 or 143), or stopped by failures (1).
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def compose(lines: Sequence[str]) -> DictConfig:
        try:
            return context.config_loader.load_sweep_config(config, list(lines))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(hydra_line(error)) from None

    plain = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    assert isinstance(plain, dict)
    settings = settings_file.read({str(key): value for key, value in plain.items()})
    written = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
    assert isinstance(written, dict)
    check_written(written["storage"])
    space = space_file.read(arguments, settings, compose, config.seed)
    extend = _custom_space(settings, config)
    _rehearse(settings, space)
    is_stacked = config.hydra.launcher._target_.endswith(".StackedLauncher")
    if is_stacked:
        together.read(config.hydra.launcher)
    with _folder(config, settings) as folder:
        name = config.name or "/".join(folder.parts[-2:])
        study = SweepStudy(folder, name, space, settings, config.seed)
        record.write_whole(folder / "multirun.yaml", OmegaConf.to_yaml(config))
    job = SweepJob(task, study.address, settings.objective, settings.pruner)
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=job, config=config
    )
    if isinstance(launcher, StackedLauncher):
        launcher.processes = study.processes()
        at_once = settings.n_jobs or (space.n_trials if space.is_grid else AHEAD)
    else:
        at_once = settings.n_jobs or _side_by_side(config)
    try:
        Loop(study, settings, launcher, at_once, extend).run(config.name)
    finally:
        study.close()


def _custom_space(settings: Settings, config: DictConfig) -> Callable[[optuna.Trial], None] | None:
    """The user's function that adds conditional keys."""
    target = settings.custom_search_space
    if target is None:
        return None
    try:
        function = instantiate(
            {"_target_": target, "_partial_": True}, _execution_whitelist_=trusted_targets()
        )
    except HydraException as error:
        raise ConfigError(
            f"hydra.sweeper.custom_search_space={target}: {hydra_line(error)}; the environment "
            "variable FMNIST_SWEEP_TRUST=yourpackage.* lets a package of your own be called"
        ) from None
    return lambda trial: function(config, trial)


def _rehearse(settings: Settings, space: Space) -> None:
    """Lets the sampler suggest two trials of a study in memory.

    Raises:
        ConfigError: it cannot work with this space or these directions.
    """
    sampler = make_sampler(settings, 0, 0)
    if space.is_grid:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(sampler=sampler, directions=settings.direction)
            for _ in range(2):
                trial = study.ask(space.distributions)
                study.tell(trial, [0.0] * len(settings.direction))
    except (ValueError, ImportError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"hydra/sweeper/sampler: {text}") from None


@contextmanager
def _folder(config: DictConfig, settings: Settings) -> Iterator[Path]:
    """The sweep's folder: a new one, unless a name or the user says which.

    A folder made here is taken away again if the study cannot be opened in it.
    """
    if settings.storage:
        reachable(settings.storage)
    folder = Path(config.hydra.sweep.dir).absolute()
    chosen = [o for o in config.hydra.overrides.hydra if o.startswith("hydra.sweep.dir=")]
    made = None
    try:
        if chosen or config.name:
            if not folder.exists():
                folder.mkdir(parents=True)
                made = folder
        else:
            folder = made = record.reserve(folder)
        yield folder
    except BaseException as error:
        if made:
            shutil.rmtree(made, ignore_errors=True)
        if isinstance(error, OSError):
            raise ConfigError(f"hydra.sweep.dir={folder}: {error.strerror}") from None
        raise


def _side_by_side(config: DictConfig) -> int:
    """How many trials run at once, as far as the launcher's configuration says."""
    jobs = OmegaConf.select(config, "hydra.launcher.n_jobs")
    if not isinstance(jobs, int) or jobs == 0:
        return 1
    return jobs if jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + jobs)


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
    ) -> None:
        self.study = study
        self.space = study.space
        self.settings = settings
        self.launcher = launcher
        self.at_once = at_once
        self.extend = extend
        self.begun: dict[int, Path] = {}
        self.console = ranking.console()
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
        code = 0
        self._greet()
        before = list(self.table.runs.values())
        with Display(self.console, self.space.n_trials, before) as self.display:
            try:
                with _signals(), _quiet_launchers(), self._watch():
                    self._launch_all(is_first=not before)
            except Interrupted as stop:
                code, stopped = 128 + stop.number, "Interrupted"
            except TooManyFailures as stop:
                code, stopped = 1, str(stop)
            except Lost as lost:
                code, stopped = 1, str(lost)
            finally:
                self._settle()
                self._refresh(final=True)
        runs = list(self.table.runs.values())
        if runs:
            ranking.show(runs, self.console)
        if runs and code < 128:  # whoever interrupts does not want to wait for pictures
            publish(self.study.folder, runs)
        print(f"Sweep folder: {folder} (sweep.csv, curves.csv, report.html)", flush=True)
        if stopped:
            left = self.space.n_trials - len(runs)
            print(f"{stopped}, {left} trials left. {way_back}.", file=sys.stderr)
            sys.exit(code)
        if runs and all(run.state == "FAILED" for run in runs):
            sys.exit(f"All {len(runs)} trials failed, the last with: {self._last_reason()}")

    def _settle(self) -> None:
        with suppress(Lost):  # then the next start does it
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
        while batch := self._ask():
            reason = "the launcher returned without it"
            try:
                self.launcher.launch([job for _, job in batch], initial_job_idx=batch[0][0])
            except Exception as error:
                reason = _in_a_line(error)
            for number, _ in batch:
                self._ended(number, reason)
            for number, _ in batch:
                self._count_failure(number, is_first)

    def _launch_each(self, is_first: bool) -> None:
        """Without batches: as one trial ends another is asked for."""

        def next_job() -> Job | None:
            asked = self._ask(1) if len(self.begun) < self.at_once else []
            return asked[0] if asked else None

        def on_end(number: int, returned: JobReturn) -> None:
            try:
                reason = f"returned {returned.return_value!r}"
            except Exception as error:
                reason = _in_a_line(error)
            self._ended(number, reason)
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
        folder = str(self.study.folder).replace("'", "\\'")
        return [
            *self.space.overrides(params),
            f"hydra.sweep.dir='{folder}'",
            f"hydra.sweep.subdir='{run.name}'",
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
                self._refresh()

        if self.at_once == 1 or isinstance(self.launcher, StackedLauncher):
            yield
            return
        watcher = threading.Thread(target=refresh, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _relative(folder: Path) -> Path:
    """A path as short as it can be written."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


@contextmanager
def _signals() -> Iterator[None]:
    """Turns SIGINT and SIGTERM into `Interrupted`; the second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: FrameType | None) -> None:
        for kind in before:
            signal.signal(kind, lambda n, _: os._exit(128 + n))
        raise Interrupted(number)

    before = {kind: signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    for kind in before:
        signal.signal(kind, stop)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


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
