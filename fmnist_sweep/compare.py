"""The command that compares sweeps: `python -m fmnist_sweep.compare A B [C ...]`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from fmnist_sweep.base import command
from fmnist_sweep.base.errors import CompareError
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results.compare import plots, showing
from fmnist_sweep.results.compare.findings import findings
from fmnist_sweep.results.compare.reading import read
from fmnist_sweep.results.ranking import console


def main() -> None:
    """Run the command. A user's mistake prints a line and exits with code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m fmnist_sweep.compare",
        description="Compares every further sweep with the first one.",
    )
    parser.add_argument(
        "sweeps",
        type=Path,
        nargs="+",
        metavar="SWEEP",
        help="a sweep's folder or its sweep.csv; at least two",
    )
    parser.add_argument("--objective", help="the column to compare (default: what they optimised)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="writes compare.csv, compare.md, compare.png and compare.json there",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    command.run(lambda: compare(**vars(arguments)))


def compare(sweeps: Sequence[Path], objective: str | None, out: Path | None, format: str) -> None:
    """Compare sweeps, print the findings and write them into a folder.

    Args:
        sweeps: sweep folders or tables; every further sweep is compared with the first.
        objective: the column to compare; None takes the objective of each sweep.
        out: the folder for compare.csv, compare.md, compare.png and compare.json, or None.
        format: text or json, for standard output.

    Raises:
        CompareError: the sweeps cannot be compared, or `out` cannot be written.
    """
    if len(sweeps) < 2:
        raise CompareError(f"{sweeps[0]}: is one sweep; give at least two")
    tables = read(sweeps, objective)
    result = findings(tables)
    text = json.dumps(result, indent=2, default=str) + "\n"
    if out:
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / "compare.png", plots.picture(tables, result["confidence"]))
            write_atomically(out / "compare.md", showing.markdown(result, "compare.png"))
            write_atomically(out / "compare.csv", showing.as_csv(result))
            write_atomically(out / "compare.json", text)
        except OSError as error:
            raise CompareError(f"--out {out}: {error.strerror}: {error.filename}") from None
    if format == "json":
        print(text, end="")
        return
    showing.show(result, console())
    if out:
        print(f"Written to {out}: compare.csv, compare.md, compare.png, compare.json")


if __name__ == "__main__":
    main()
