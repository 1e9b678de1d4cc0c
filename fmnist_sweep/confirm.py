"""Confirm a sweep's winners on fresh seeds: `python -m fmnist_sweep.confirm multirun/NAME`."""

import argparse
import sys
from pathlib import Path

from fmnist_sweep.base import command, processes


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_sweep.confirm",
        description="Trains a sweep's winners and the baseline again on fresh seeds, then the "
        "winner on all training examples, and opens the test set once. Interrupted? Run the "
        "same command to resume.",
    )
    parser.add_argument("folder", type=Path, help="a sweep's folder, such as multirun/NAME")
    parser.add_argument("--top", type=int, default=5, help="how many configurations (default: 5)")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: 5)")
    parser.add_argument(
        "--refit",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train the winner on all training examples before the test (default); "
        "otherwise its models of the fresh seeds are tested",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="open the test set although it was opened for another selection",
    )
    parser.add_argument(
        "--app",
        metavar="COMMAND",
        help="for a sweep of another Hydra application: its command, such as 'python app.py'; its "
        "winners are ranked on fresh seeds, and no test set is opened",
    )
    arguments = parser.parse_args()
    for name in ("top", "seeds"):
        if getattr(arguments, name) < 1:
            sys.exit(f"--{name}={getattr(arguments, name)}: must be at least 1")
    command.run(
        lambda: _confirm(arguments), interrupted="Interrupted. Run the same command to resume."
    )


def _confirm(arguments: argparse.Namespace) -> None:
    # Late, as it imports much that --help does not need.
    if arguments.app is None:
        from fmnist_sweep.engine.settings import WORKER_MODULES

        processes.start_server(*WORKER_MODULES)
    with command.imports():
        from fmnist_sweep.task.confirm.confirmation import ConfirmOptions, confirm

    confirm(ConfirmOptions(**vars(arguments)))


if __name__ == "__main__":
    main()
