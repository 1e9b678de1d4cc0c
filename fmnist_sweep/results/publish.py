"""Write a sweep's pictures and page into its folder."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fmnist_sweep.base.figures import Figure, png
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import key_plots, lineage, page, parallel, series, sweep_plots, swept
from fmnist_sweep.results.importance import importances
from fmnist_sweep.results.lineage import Descent
from fmnist_sweep.results.tables import Run
from fmnist_sweep.results.timing import timing


def publish(folder: Path, runs: Sequence[Run]) -> Path:
    """Write `plots/*.png` and `report.html`.

    Args:
        folder: the sweep's folder.
        runs: the finished runs, at least one.

    Returns:
        The path of the page.

    Raises:
        OSError: the folder cannot be written.
    """
    ordered = sorted(runs, key=lambda run: run.trial)
    rows = lineage.read(folder)
    # In a population the values that trials began with say little about what they reached.
    shares = {} if rows else importances(ordered)
    write_atomically(folder / "report.html", page.page(folder, ordered, shares))
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    drawn = pictures(ordered, rows, shares)
    for name in NAMES:
        if draw := drawn.get(name):
            write_atomically(plots / f"{name}.png", png(draw()))
        else:  # an earlier report, of fewer trials, may have left an outdated picture
            (plots / f"{name}.png").unlink(missing_ok=True)
    return folder / "report.html"


def write_page(folder: Path, runs: Sequence[Run], refresh: float | None = None) -> None:
    """Write `report.html` without importances and pictures, which take a second; see `publish`.

    Args:
        refresh: the seconds after which a browser loads the page again.
    """
    ordered = sorted(runs, key=lambda run: run.trial)
    write_atomically(folder / "report.html", page.page(folder, ordered, {}, refresh))


NAMES = (
    "curves",
    "history",
    "importances",
    "slices",
    "parallel",
    "grid",
    "pareto",
    "schedule",
    "lineage",
    "time",
)


def pictures(
    runs: Sequence[Run], rows: Sequence[Descent], shares: dict[str, float] | None = None
) -> dict[str, Callable[[], Figure]]:
    """Return the functions that draw the pictures for which a sweep has data.

    Args:
        runs: ordered by trial, at least one.
        rows: the lineage of a population; empty for other sweeps.
        shares: the keys' `importances`, if they are known already.

    Returns:
        The functions by the pictures' names, in the order of `NAMES`.
    """
    if shares is None:
        shares = {} if rows else importances(runs)
    has_values = any(series.objective(run) is not None for run in runs)
    when = timing(runs)
    axes, lines = parallel.lines(runs) if not rows else ([], [])
    copies = {(row.trial, row.epoch) for row in rows if row.copied is not None}
    drawn: dict[str, Callable[[], Figure]] = {}
    if any(run.history for run in runs):
        drawn["curves"] = partial(sweep_plots.curves, runs, copies)
    if has_values:
        drawn["history"] = partial(sweep_plots.history, runs)
    if shares:
        drawn["importances"] = partial(sweep_plots.importances, shares)
    if has_values and not rows and swept.axes(runs):
        drawn["slices"] = partial(key_plots.slices, runs)
    if lines:
        drawn["parallel"] = partial(key_plots.parallel, axes, lines)
    if not rows and (found := swept.grid(runs)):
        drawn["grid"] = partial(key_plots.grid, runs, *found)
    if series.front(runs):
        drawn["pareto"] = partial(sweep_plots.front, runs)
    if when and when.schedule:
        drawn["schedule"] = partial(sweep_plots.schedule, runs, when.schedule)
    if rows:
        drawn["lineage"] = partial(sweep_plots.population, rows, runs)
    if when and when.parts:
        drawn["time"] = partial(sweep_plots.time, when)
    return drawn
