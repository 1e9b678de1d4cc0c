"""Write a sweep's pictures and page into its folder."""

from collections.abc import Sequence
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
    drawn = _pictures(ordered, shares, rows)
    for name in _NAMES:
        if figure := drawn.get(name):
            write_atomically(plots / f"{name}.png", png(figure))
        else:  # an earlier report, of fewer trials, may have left an outdated picture
            (plots / f"{name}.png").unlink(missing_ok=True)
    return folder / "report.html"


_NAMES = (
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


def _pictures(
    runs: Sequence[Run], shares: dict[str, float], rows: Sequence[Descent]
) -> dict[str, Figure | None]:
    """Draw the pictures for which the sweep has data; the others are None."""
    has_values = any(series.objective(run) is not None for run in runs)
    when = timing(runs)
    axes, lines = parallel.lines(runs) if not rows else ([], [])
    copies = {(row.trial, row.epoch) for row in rows if row.copied is not None}
    return {
        "curves": sweep_plots.curves(runs, copies) if any(run.history for run in runs) else None,
        "history": sweep_plots.history(runs) if has_values else None,
        "importances": sweep_plots.importances(shares) if shares else None,
        "slices": key_plots.slices(runs) if has_values and not rows and swept.axes(runs) else None,
        "parallel": key_plots.parallel(axes, lines) if lines else None,
        "grid": key_plots.grid(runs) if not rows else None,
        "pareto": sweep_plots.front(runs) if series.front(runs) else None,
        "schedule": sweep_plots.schedule(runs, when.schedule) if when and when.schedule else None,
        "lineage": sweep_plots.population(rows, runs) if rows else None,
        "time": sweep_plots.time(when) if when and when.parts else None,
    }
