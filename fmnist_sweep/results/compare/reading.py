"""Read the sweeps to compare: sweep folders and `sweep.csv` files, of this and other versions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fmnist_sweep.base.errors import CompareError, ReportError
from fmnist_sweep.results import facts, record
from fmnist_sweep.results.compare.sweep_table import DATA, SweepTable, checked, read_csv
from fmnist_sweep.results.tables import Sweep, as_csv
from fmnist_sweep.results.timing import timing


def read(paths: Sequence[Path], objective: str | None) -> list[SweepTable]:
    """Read the sweeps and check that they can be compared.

    Args:
        paths: sweep folders or tables.
        objective: the column to compare; None takes the objective of each sweep.

    Raises:
        CompareError: a path is missing, torn, not a sweep or given twice, or objectives differ.
    """
    resolved = [path.resolve() for path in paths]
    for path, real in zip(paths, resolved):
        if resolved.count(real) > 1:
            raise CompareError(f"{path}: is given {resolved.count(real)} times; give it once")
    tables = [_read_table(path, objective) for path in paths]
    first, *others = [
        f"{'maximize' if table.maximize else 'minimize'} {table.objective}" for table in tables
    ]
    for other, table in zip(others, tables[1:]):
        if first != other:
            raise CompareError(
                f"{tables[0].source} was to {first}, {table.source} to {other}: "
                "these cannot be compared; --objective names one column for all"
            )
    return _with_unique_names(tables)


def _with_unique_names(tables: Sequence[SweepTable]) -> list[SweepTable]:
    """Name each sweep by its folder, with as many parent folders as make the names unique."""
    folders = [table.source.resolve() for table in tables]
    folders = [f if f.is_dir() else f.parent if f.name == "sweep.csv" else f for f in folders]
    depth = 1
    names = [f.name for f in folders]
    while len(set(names)) < len(names) and depth < 20:
        depth += 1
        names = ["/".join(f.parts[-depth:]) for f in folders]
    return [replace(table, name=name) for table, name in zip(tables, names)]


def _read_table(path: Path, objective: str | None) -> SweepTable:
    if not path.exists():
        raise CompareError(f"{path}: no such file or folder")
    folder = path if path.is_dir() else path.parent
    directions, warnings, when = None, [], None
    if path.is_dir():
        sweep = _runs(path)
        file = path / "sweep.csv"
        if sweep.runs:
            run = next(iter(sweep.runs.values()))
            directions = dict(zip(run.objective, run.direction))
            rows = sweep.sweep_table()
            when = timing(list(sweep.runs.values()))
            if file.exists() and file.read_bytes() != as_csv(rows).encode():
                warnings.append(
                    f"{file} is not what the run folders say, which are taken here; "
                    f"python -m fmnist_sweep.report {path} makes it anew"
                )
        elif file.exists():
            rows = read_csv(file)
        else:
            raise CompareError(f"{path}: holds neither run folders nor a sweep.csv")
    else:
        rows = read_csv(path)
    table = checked(path, rows, directions, objective)
    first = next((f[-1] for f in record.attempts(folder).values()), None)
    settings = {**facts.flat(facts.configuration(first)), **facts.choices(first)} if first else {}
    return replace(
        table,
        settings=settings,
        environment=_environment(first),
        warnings=warnings,
        wall=when.wall if when else None,
        ranges=facts.ranges(folder),
    )


def _runs(folder: Path) -> Sweep:
    try:
        sweep = Sweep(folder)
        sweep.update()
    except ReportError as error:
        raise CompareError(str(error)) from None
    return sweep


def _environment(run: Path | None) -> dict[str, Any]:
    try:
        values = record.read_json(run, "environment.json") if run else {}
    except (OSError, ValueError):
        return {}
    versions = values.pop("versions", None)
    versions = versions if isinstance(versions, dict) else {}
    for name in ("command", "platform"):
        values.pop(name, None)
    data = values.pop("data", None)
    if isinstance(data, dict) and isinstance(data.get("fingerprint"), str):
        values[DATA] = f"{data.get('name')}, SHA-256 {data['fingerprint'][:12]}"
    return {**values, **{f"{package} version": v for package, v in versions.items()}}
