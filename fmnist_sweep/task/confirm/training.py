"""Train configurations on fresh seeds, in stacks; reuse what was trained before."""

import logging
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fmnist_sweep.base.background import Background
from fmnist_sweep.base.errors import TrialFailed
from fmnist_sweep.base.files import make_unique_dir, write_atomically
from fmnist_sweep.base.processes import cores
from fmnist_sweep.engine.training_jobs import JobScheduler
from fmnist_sweep.results import record
from fmnist_sweep.sweep.task import never_stop
from fmnist_sweep.task import picture, scheduling, trial
from fmnist_sweep.task.config import Config


def trained(
    folder: Path, wanted: Sequence[tuple[str, Config]], say: Callable[[str], None]
) -> dict[str, Path]:
    """Train every configuration that has no finished run yet, all of them together.

    Args:
        folder: the confirmation's folder, which holds the runs.
        wanted: names and configurations.
        say: called with a line for each run that has been trained now.

    Returns:
        The finished run folder of each name. A run whose loss became NaN is finished as FAILED.

    Raises:
        ConfigError, DataError: nothing can be trained.
    """
    found = {name: _finished(folder, name) for name, _ in wanted}
    missing = [(name, config) for name, config in wanted if found[name] is None]
    n_ended = len(wanted) - len(missing)
    with closing(_train(folder, missing)) as ended:
        for name, run, summary in ended:
            n_ended += 1
            accuracy = summary.get("val_accuracy")
            part = "training" if summary.get("validation") == "train" else "validation"
            figures = (
                f"{accuracy:.2%} of the {part} examples"
                if accuracy is not None
                else str(summary["reason"])
            )
            say(f"[{n_ended}/{len(wanted)}] {name}: {figures}, {summary['seconds']:.1f} s")
            found[name] = run
    return {name: run for name, run in found.items() if run is not None}


def of_seed(run: Path, config: Config, seed: int) -> Path:
    """Return the folder of one seed within a run on several seeds."""
    return run / f"repeat-{seed - config.seed}" if config.repeats > 1 else run


def _finished(folder: Path, name: str) -> Path | None:
    """Return the finished run of that name; `name-2`, `name-3`, ... are further attempts."""
    if not folder.is_dir():
        return None
    attempts = [p for p in folder.iterdir() if re.fullmatch(rf"{re.escape(name)}(-\d+)?", p.name)]
    return next((run for run in sorted(attempts) if record.summary(run) is not None), None)


def _train(
    folder: Path, configs: Sequence[tuple[str, Config]]
) -> Generator[tuple[str, Path, dict[str, Any]]]:
    """Train configurations in stacks on all cores; yield name, folder and summary of each run."""
    if not configs:
        return
    running: list[_Run] = []
    with (
        Background() as background,
        scheduling.scheduler([config for _, config in configs], cores()) as scheduler,
    ):
        try:
            for name, config in configs:
                running.append(_Run(name, config, folder, background, scheduler))
            while running:
                for run in [run for run in running if run.is_trained]:
                    running.remove(run)
                    yield run.name, run.folder, run.finish()
                if running:
                    scheduler.step()
            background.close()
        finally:
            for run in running:
                run.training.history_file.flush()


class _Run:
    """A configuration in training, into a run folder like those of a sweep."""

    def __init__(
        self,
        name: str,
        config: Config,
        folder: Path,
        background: Background,
        scheduler: JobScheduler,
    ) -> None:
        self.name = name
        self.folder = make_unique_dir(folder / name)
        (self.folder / ".hydra").mkdir()
        values = config.model_dump(by_alias=True, exclude_unset=True)
        text = yaml.safe_dump(values, sort_keys=False)
        write_atomically(self.folder / ".hydra/config.yaml", text)
        with self._log():
            # With a callback, the progress bar of a single run stays off the screen.
            self.training = trial.prepare(config, self.folder, test=False, on_epoch=never_stop)
        self.training.draw = lambda folder, title: background.submit(
            partial(picture.draw, folder, title)
        )
        for job in self.training.jobs:
            job.on_epoch = partial(self._logged, job.on_epoch)
            job.on_batches = partial(self._logged, job.on_batches)
            scheduler.add(job)

    def _logged(self, call: Callable[[Any], None], argument: Any) -> None:
        with self._log():
            call(argument)

    @property
    def is_trained(self) -> bool:
        return all(job.ended for job in self.training.jobs)

    def finish(self) -> dict[str, Any]:
        """Complete the run folder and return its summary."""
        with self._log():
            try:
                return self.training.finish()
            except TrialFailed as failure:
                logging.getLogger(__name__).error("%s", failure)
                summary = record.summary(self.folder)
                assert summary is not None
                return {**summary, "val_accuracy": None}

    @contextmanager
    def _log(self) -> Iterator[None]:
        """Log to a file, as Hydra does for a run."""
        root = logging.getLogger()
        level = root.level
        handler = logging.FileHandler(self.folder / "train.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        try:
            yield
        finally:
            root.setLevel(level)
            root.removeHandler(handler)
            handler.close()
