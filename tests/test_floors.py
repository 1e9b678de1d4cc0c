"""Each room imports only rooms on lower floors, and heavy libraries stay where they belong."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fmnist_sweep"

# From the ground up; a file named here overrides its folder.
FLOORS = {
    "__init__.py": 0,
    "base": -1,
    "schema_errors.py": 0,
    "config.py": 1,
    "record.py": 1,
    "data": 2,
    "models": 2,
    "report": 2,
    "screen.py": 2,
    "loggers.py": 2,
    "training": 3,
    "compare": 3,
    "build.py": 4,
    "trial.py": 5,
    "hydra_errors.py": 1,
    "sweep": 4,
    "cli.py": 6,
    "fashion_task.py": 7,
    "together.py": 7,
    "stacked_launcher.py": 8,
    "confirm": 8,
    "train.py": 8,
}
FORBIDDEN = {
    "config.py": {"torch", "hydra", "optuna", "matplotlib"},
    "record.py": {"torch", "hydra", "optuna", "matplotlib"},
    "models": {"hydra", "optuna"},
    "report": {"torch", "optuna"},
    # Importances are Optuna's, of a study made from the tables; nothing else there needs it.
    "report/importance.py": {"torch"},
    "compare": {"torch", "hydra", "optuna"},
    "confirm": {"hydra", "optuna"},
    "training": {"hydra", "omegaconf", "optuna"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0]


def named(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def imports(file: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_rooms(file: Path) -> set[str]:
    parts = (name.split(".") for name in imports(file) if name.startswith("fmnist_sweep."))
    return {r if (PACKAGE / (r := part[1])).is_dir() else f"{r}.py" for part in parts}


def test_every_file_has_a_floor() -> None:
    assert {room(file) for file in FILES} == set(FLOORS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    here = room(file)
    for other in imported_rooms(file) - {here}:
        assert FLOORS[other] < FLOORS[here], f"{here} imports {other}"


@pytest.mark.parametrize("place", FORBIDDEN)
def test_heavy_libraries_stay_out(place: str) -> None:
    files = [file for file in FILES if room(file) == place or named(file) == place]
    assert files
    for file in files:
        if named(file) in FORBIDDEN and named(file) != place:
            continue
        found = {name.split(".")[0] for name in imports(file)}
        taken = found & FORBIDDEN[place]
        assert not taken, f"{file}: imports {taken}"
