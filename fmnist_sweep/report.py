"""Make a sweep's tables, pictures and page again from its run folders.

python -m fmnist_sweep.report multirun/NAME
"""

import argparse
from pathlib import Path

from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ReportError
from fmnist_sweep.results import advice, ranking
from fmnist_sweep.results.publish import publish
from fmnist_sweep.results.tables import Sweep
from fmnist_sweep.task import picture


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_sweep.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as multirun/NAME")
    folder = parser.parse_args().folder
    command.run(lambda: report(folder))


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
