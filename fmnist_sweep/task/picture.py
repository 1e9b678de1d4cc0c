"""The picture of a run, `results.png`, drawn when its training ends or later."""

from collections.abc import Sequence
from pathlib import Path

from fmnist_sweep.base.errors import ConfigError, RecordError
from fmnist_sweep.results import facts
from fmnist_sweep.results.tables import Run
from fmnist_sweep.task.config import Config, parse


def title(config: Config) -> str:
    """Return the title of a run's picture."""
    model, optimizer = (t.target.rsplit(".", 1)[-1] for t in (config.model, config.optimizer))
    seeds = f"seed {config.seed}"
    if config.repeats > 1:
        seeds = f"mean of seeds {config.seed} to {config.seed + config.repeats - 1}"
    return (
        f"{model}, {optimizer}, learning rate {config.optimizer.lr:g}, "
        f"batch {config.data.batch_size}, {seeds}"
    )


def draw(folder: Path, heading: str) -> None:
    """Draw `results.png` into a run folder; see `run_plot.draw`."""
    from fmnist_sweep.results import run_plot  # imports Matplotlib, which takes half a second

    run_plot.draw(folder, heading)


def draw_missing(runs: Sequence[Run]) -> int:
    """Draw the pictures that are missing, of runs of this package's own training.

    Returns:
        The number of pictures drawn.
    """
    drawn = 0
    for run in runs:
        if (run.folder / "results.png").exists() or not run.history:
            continue
        try:
            config = parse(facts.configuration(run.folder), Path())
            draw(run.folder, title(config))
        except (ConfigError, RecordError, OSError):  # another application's run, or a damaged one
            continue
        drawn += 1
    return drawn
