"""What `compare` is given: sweep folders and `sweep.csv` files, also of other versions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fmnist_sweep.base.errors import CompareError, ReportError
from fmnist_sweep.results import facts, record, tables
from fmnist_sweep.results.compare.sweep_table import SweepTable, checked, read_csv
from fmnist_sweep.results.tables import Sweep


def read(paths: Sequence[Path], objective: str | None) -> list[SweepTable]:
    """Reads the sweeps and makes sure that they can be compared.

    Args:
        objective: the column to compare; None takes what each sweep optimises.

    Raises:
        CompareError: a file is missing, torn or no sweep, or the sweeps have different objectives.
    """
    resolved = [path.resolve() for path in paths]
    for path, real in zip(paths, resolved):
        if resolved.count(real) > 1:
            raise CompareError(f"{path}: is given {resolved.count(real)} times; give it once")
    sides = [_side(path, objective) for path in paths]
    first = sides[0]
    for other in sides[1:]:
        for what in ("objective", "maximize"):
            if getattr(first, what) != getattr(other, what):
                raise CompareError(
                    f"{first.source} was to {_goal(first)}, {other.source} to {_goal(other)}: "
                    "these cannot be compared; --objective names one column for all"
                )
    return _with_own_names(sides)


def _goal(side: SweepTable) -> str:
    return f"{'maximize' if side.maximize else 'minimize'} {side.objective}"


def _with_own_names(sides: Sequence[SweepTable]) -> list[SweepTable]:
    """Folder names, with as much of the path before them as tells them apart."""
    folders = [s.source.resolve() for s in sides]
    folders = [f if f.is_dir() else f.parent if f.name == "sweep.csv" else f for f in folders]
    depth = 1
    names = [f.name for f in folders]
    while len(set(names)) < len(names) and depth < 20:
        depth += 1
        names = ["/".join(f.parts[-depth:]) for f in folders]
    return [replace(side, name=name) for side, name in zip(sides, names)]


def _side(path: Path, objective: str | None) -> SweepTable:
    if not path.exists():
        raise CompareError(f"{path}: no such file or folder")
    folder = path if path.is_dir() else path.parent
    sweep, goals, notes = None, None, []
    if path.is_dir():
        sweep = _runs(path)
        goals = _goals(sweep) if sweep.runs else None
        file = path / "sweep.csv"
        if sweep.runs:
            table = sweep.sweep_table()
            if file.exists() and file.read_bytes() != tables.as_csv(table).encode():
                notes.append(
                    f"{file} is not what the run folders say, which are taken here; "
                    f"python -m fmnist_sweep.report {path} makes it anew"
                )
        elif file.exists():
            table = read_csv(file)
        else:
            raise CompareError(f"{path}: holds neither run folders nor a sweep.csv")
    else:
        table = read_csv(path)
    side = checked(path, table, goals, objective)
    first = next((f[-1] for f in record.attempts(folder).values()), None)
    settings = {**facts.flat(facts.configuration(first)), **facts.choices(first)} if first else {}
    return replace(side, settings=settings, environment=_environment(first), warnings=notes)


def _runs(folder: Path) -> Sweep:
    try:
        sweep = Sweep(folder)
        sweep.update()
    except ReportError as error:
        raise CompareError(str(error)) from None
    return sweep


def _goals(sweep: Sweep) -> dict[str, str]:
    run = next(iter(sweep.runs.values()))
    return dict(zip(run.objective, run.direction))


def _environment(run: Path | None) -> dict[str, Any]:
    try:
        values = record.read_json(run, "environment.json") if run else {}
    except (OSError, ValueError):
        return {}
    versions = values.pop("versions", None)
    versions = versions if isinstance(versions, dict) else {}
    for name in ("command", "platform"):
        values.pop(name, None)
    return {**values, **{f"{package} version": v for package, v in versions.items()}}
