"""Compares sweeps: `python -m fmnist_sweep.compare A B [C ...]`."""

import argparse
import json
import sys
from pathlib import Path

from fmnist_sweep.compare import pictures, showing
from fmnist_sweep.compare.findings import findings
from fmnist_sweep.compare.reading import read
from fmnist_sweep.compare.rows import CompareError
from fmnist_sweep.record import write_whole
from fmnist_sweep.report.ranking import console


def main() -> None:
    """The command; a user's mistake is one line and exit code 1."""
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
    try:
        if len(arguments.sweeps) < 2:
            raise CompareError(f"{arguments.sweeps[0]}: is one sweep; give at least two")
        sides = read(arguments.sweeps, arguments.objective)
        found = findings(sides)
        text = json.dumps(found, indent=2, default=str) + "\n"
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_whole(arguments.out / "compare.png", pictures.picture(sides, found["confidence"]))
            write_whole(arguments.out / "compare.md", showing.markdown(found, "compare.png"))
            write_whole(arguments.out / "compare.csv", showing.as_csv(found))
            write_whole(arguments.out / "compare.json", text)
    except CompareError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        sys.exit(f"--out {arguments.out}: {error.strerror}: {error.filename}")
    if arguments.format == "json":
        print(text, end="")
        return
    showing.show(found, console())
    if arguments.out:
        print(f"Written to {arguments.out}: compare.csv, compare.md, compare.png, compare.json")


if __name__ == "__main__":
    main()
