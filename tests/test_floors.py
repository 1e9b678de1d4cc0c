"""Each subject imports only subjects below it, and heavy libraries stay where they belong."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fmnist_sweep"

# From the ground up. The commands are the files beside these folders.
FLOORS = ["base", "models", "results", "engine", "sweep", "task", "commands"]
FORBIDDEN = {
    "base": {"torch", "torchvision", "hydra", "optuna"},
    "models": {"hydra", "optuna"},
    "results": {"torch", "torchvision", "hydra", "omegaconf", "optuna"},
    "engine": {"hydra", "omegaconf", "optuna"},
    "sweep": {"torch", "torchvision"},
    "task": {"optuna"},
}
EXCEPTIONS = {
    "base/errors.py": {"omegaconf"},  # whose errors it explains
    "results/importance.py": {"optuna"},  # importances are Optuna's
}
# Light enough to be imported before a command line is parsed.
LIGHT = ["base/errors.py", "base/schema.py", "engine/settings.py", "task/config.py", "task/cli.py"]
FILES = sorted(PACKAGE.rglob("*.py"))


def subject(path: tuple[str, ...]) -> str:
    """The subject of a module, by the parts of its dotted name without the package's."""
    return path[0] if path and path[0] in FLOORS else "commands"


def named(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


def imports(file: Path, late: bool = True) -> Iterator[str]:
    """Dotted names that a file imports, anywhere in it, and our modules that its strings name."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"^(?:pkg://)?(fmnist_sweep(?:\.\w+)+)", node.value)


@pytest.mark.parametrize("file", FILES, ids=named)
def test_imports_go_down(file: Path) -> None:
    here = subject(file.relative_to(PACKAGE).parts)
    for name in imports(file):
        package, *path = name.split(".")
        if package != "fmnist_sweep" or not path:
            continue
        there = subject(tuple(path))
        assert there == here or FLOORS.index(there) < FLOORS.index(here), f"{file}: {name}"


@pytest.mark.parametrize("file", FILES, ids=named)
def test_heavy_libraries_stay_out(file: Path) -> None:
    forbidden = FORBIDDEN.get(subject(file.relative_to(PACKAGE).parts), set())
    found = {name.split(".")[0] for name in imports(file)}
    assert found & forbidden <= EXCEPTIONS.get(named(file), set())


@pytest.mark.parametrize("name", LIGHT)
def test_what_parses_a_command_line_is_light(name: str) -> None:
    found = {one.split(".")[0] for one in imports(PACKAGE / name, late=False)}
    assert not found & {"torch", "torchvision", "optuna", "pandas", "matplotlib"}


def test_no_circle_of_modules() -> None:
    """At import time; an import within a function may close one."""
    modules = {
        ".".join(("fmnist_sweep", *f.relative_to(PACKAGE).with_suffix("").parts)): f for f in FILES
    }
    below = {
        module: {
            other
            for name in imports(file, late=False)
            for other in (name, name.rpartition(".")[0])
            if other in modules and other != module
        }
        for module, file in modules.items()
    }
    done: set[str] = set()
    while free := {
        module for module, needs in below.items() if module not in done and needs <= done
    }:
        done |= free
    assert done == set(modules)
