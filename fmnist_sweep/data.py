"""Find, fetch and verify the data set: `python -m fmnist_sweep.data [--root data]`."""

import argparse
import logging
from collections.abc import Sequence

from fmnist_sweep.base import command
from fmnist_sweep.task.data.idx import SHA256
from fmnist_sweep.task.data.source import locate


def main(argv: Sequence[str] | None = None) -> None:
    """Print where the data is and whether it verifies; exit with 1 if it does not."""
    parser = argparse.ArgumentParser(prog="python -m fmnist_sweep.data", description=main.__doc__)
    parser.add_argument("--root", help="data.root (default: $FMNIST_SWEEP_DATA, or data)")
    parser.add_argument("--no-verify", action="store_true", help="as data.verify=false")
    arguments = parser.parse_args(argv)
    command.run(lambda: _show(arguments.root, not arguments.no_verify))


def _show(root: str | None, verify: bool) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    files = locate(root, verify)
    state = "sha256 ok" if verify else "header ok"
    for name in SHA256:
        path = files.folder / name
        print(f"{path}  {path.stat().st_size:>10,} bytes  {state}")
    print(f"Fashion-MNIST from {files.origin}: {'not ' * (not verify)}verified")


if __name__ == "__main__":
    main()
