"""List sweeps: `python -m fmnist_sweep.sweeps [FOLDER ...]`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ReportError
from fmnist_sweep.results import listing
from fmnist_sweep.results.ranking import console


def main(argv: Sequence[str] | None = None) -> None:
    """Print the sweeps below folders; exit with 1 if there are none."""
    parser = argparse.ArgumentParser(prog="python -m fmnist_sweep.sweeps", description=main.__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("multirun")], metavar="FOLDER",
        help="where to look (default: multirun)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    command.run(lambda: show(arguments.folders))


def show(folders: Sequence[Path]) -> None:
    """Print the sweeps in folders and below them, the newest first.

    Raises:
        ReportError: a folder does not exist, or there is no sweep.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"{folder}: no such folder")
    found = listing.find(folders)
    if not found:
        raise ReportError(f"{' '.join(map(str, folders))}: no sweep here")
    listing.show(found, console())


if __name__ == "__main__":
    main()
