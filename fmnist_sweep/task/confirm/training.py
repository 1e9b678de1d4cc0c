"""Train configurations, each on all seeds in one stack; reuse what was trained before."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fmnist_sweep.base.errors import TrialFailed
from fmnist_sweep.base.files import make_unique_dir, write_atomically
from fmnist_sweep.results import record
from fmnist_sweep.task import trial
from fmnist_sweep.task.config import Config


def trained(
    folder: Path, wanted: Sequence[tuple[str, Config]], say: Callable[[str], None]
) -> dict[str, Path]:
    """Train every configuration that has no finished run yet.

    Args:
        folder: the confirmation's folder, which holds the runs.
        wanted: names and configurations.
        say: called with a line for each run that is trained now.

    Returns:
        The finished run folder of each name. A run whose loss became NaN is finished as FAILED.

    Raises:
        ConfigError, DataError: nothing can be trained.
    """
    found = {}
    for number, (name, config) in enumerate(wanted, 1):
        run = _finished(folder, name)
        if run is None:
            run = make_unique_dir(folder / name)
            summary = _train(config, run)
            accuracy = summary.get("val_accuracy")
            figures = f"{accuracy:.2%}" if accuracy is not None else str(summary["reason"])
            say(f"[{number}/{len(wanted)}] {name}: {figures}, {summary['seconds']:.1f} s")
        found[name] = run
    return found


def of_seed(run: Path, config: Config, seed: int) -> Path:
    """Return the folder of one seed within a run on several seeds."""
    return run / f"repeat-{seed - config.seed}" if config.repeats > 1 else run


def _finished(folder: Path, name: str) -> Path | None:
    """Return the finished run of that name; `name-2`, `name-3`, ... are further attempts."""
    if not folder.is_dir():
        return None
    attempts = [p for p in folder.iterdir() if re.fullmatch(rf"{re.escape(name)}(-\d+)?", p.name)]
    return next((run for run in sorted(attempts) if record.summary(run) is not None), None)


def _train(config: Config, run: Path) -> dict[str, Any]:
    """Train a configuration into a run folder like those of a sweep."""
    (run / ".hydra").mkdir()
    text = yaml.safe_dump(config.model_dump(by_alias=True, exclude_unset=True), sort_keys=False)
    write_atomically(run / ".hydra/config.yaml", text)
    with _log(run / "train.log"):
        try:
            # With a callback, the progress bar of a single run stays off the screen.
            return trial.run(config, run, test=False, on_epoch=lambda _: True)
        except TrialFailed as failure:
            logging.getLogger(__name__).error("%s", failure)
            summary = record.summary(run)
            assert summary is not None
            return {**summary, "val_accuracy": None}


@contextmanager
def _log(path: Path) -> Iterator[None]:
    """Log to a file, as Hydra does for a run."""
    root = logging.getLogger()
    level = root.level
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()
