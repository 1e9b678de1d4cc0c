"""Make a sweep's tables, pictures and page again from its run folders.

python -m fmnist_sweep.report multirun/NAME
python -m fmnist_sweep.report multirun/NAME --watch    # keeps the page fresh while it runs
"""

import argparse
import sys
import time
from pathlib import Path

from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ReportError
from fmnist_sweep.results import advice, listing, ranking
from fmnist_sweep.results.publish import publish, write_page
from fmnist_sweep.results.tables import Sweep
from fmnist_sweep.task import picture

WATCH_SECONDS = 5.0


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_sweep.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as multirun/NAME")
    parser.add_argument(
        "--watch", nargs="?", type=float, const=WATCH_SECONDS, metavar="SECONDS",
        help="write the page again whenever trials have ended, at most every SECONDS "
        f"(default: {WATCH_SECONDS:g}), until the sweep's command has ended",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.watch is None:
        command.run(lambda: report(arguments.folder))
        return
    if not arguments.watch > 0:
        sys.exit(f"--watch {arguments.watch:g}: must be greater than 0")
    command.run(lambda: watch(arguments.folder, arguments.watch), interrupted="Not watched further")


def watch(folder: Path, seconds: float) -> None:
    """Keep a running sweep's page fresh; once its command has ended, make everything again.

    The page loads itself again in the browser.

    Args:
        folder: the sweep's folder.
        seconds: between two looks at the folder.

    Raises:
        ReportError: the folder does not exist, or holds no finished run at the end.
    """
    sweep = Sweep(folder)
    while True:
        is_running = listing.is_running(folder)  # before the runs, so that none is missed
        if sweep.update() and is_running:
            write_page(folder, list(sweep.runs.values()), refresh=seconds)
            print(f"{len(sweep.runs)} trials: {folder / 'report.html'}", flush=True)
        if not is_running:
            report(folder)
            return
        time.sleep(seconds)


def report(folder: Path) -> None:
    """Write the tables, pictures and page of a sweep's folder, and print the ranking.

    Raises:
        ReportError: the folder holds no finished run.
    """
    sweep = Sweep(folder)
    if not sweep.update():
        raise ReportError(f"{folder}: holds no finished run; give a sweep's folder")
    sweep.write()
    runs = list(sweep.runs.values())
    page = publish(folder, runs)
    drawn = picture.draw_missing(runs)
    ranking.show(runs, ranking.console())
    advice.show(folder, runs)
    print(f"Tables: {folder / 'sweep.csv'}, {folder / 'curves.csv'}")
    print(f"Pictures: {folder / 'plots'}, page: {page}")
    if drawn:
        print(f"Drawn now: results.png of {drawn} runs")


if __name__ == "__main__":
    main()
