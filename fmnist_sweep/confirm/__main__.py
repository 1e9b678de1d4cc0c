"""Confirms a sweep's winners: `python -m fmnist_sweep.confirm multirun/NAME`."""

import argparse
import sys
from pathlib import Path


def main() -> None:
    """The command; a user's mistake is one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_sweep.confirm",
        description="Trains a sweep's winners and the baseline again on fresh seeds, then the "
        "winner on all training images, and opens the test set once. Interrupted, the same "
        "command goes on.",
    )
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as multirun/NAME")
    parser.add_argument("--top", type=int, default=5, help="how many configurations (default: 5)")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: 5)")
    parser.add_argument(
        "--refit",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train the winner on all 60,000 images before the test (default); "
        "otherwise its models of the fresh seeds are tested",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="open the test set although it was opened for another selection",
    )
    arguments = parser.parse_args()
    for name in ("top", "seeds"):
        if getattr(arguments, name) < 1:
            sys.exit(f"--{name}={getattr(arguments, name)}: must be at least 1")
    try:
        _confirm(arguments)
    except KeyboardInterrupt:
        print("Interrupted. The same command goes on.", file=sys.stderr)
        sys.exit(130)


def _confirm(arguments: argparse.Namespace) -> None:
    # These import torch, which --help does without.
    from fmnist_sweep.config import ConfigError
    from fmnist_sweep.confirm.command import Wishes, confirm
    from fmnist_sweep.data.idx import DataError
    from fmnist_sweep.record import RecordError
    from fmnist_sweep.report.tables import ReportError

    try:
        confirm(Wishes(**vars(arguments)))
    except (ConfigError, DataError, RecordError, ReportError) as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"{error.filename or arguments.folder}: {error.strerror}")


if __name__ == "__main__":
    main()
