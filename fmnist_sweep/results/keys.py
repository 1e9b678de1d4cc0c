"""Configuration keys: those without effect on results or of a single run; setting a dotted key."""

from collections.abc import Sequence
from typing import Any

# Keys and sections without effect on results: runs that differ only here are the same run.
CHANGES_NO_RESULT = (
    "name",
    "logger",
    "data.root",
    "data.path",
    "data.verify",
    "trainer.log_every",
    "trainer.checkpoint",
)

# Keys for a run's seed or its machine, which do not distinguish configurations.
BELONGS_TO_THE_RUN = ("seed", "repeats", "trainer.device", "trainer.threads", "trainer.compile")


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a dotted key in nested dictionaries; make the sections that are missing."""
    *sections, last = key.split(".")
    for name in sections:
        if not isinstance(values.get(name), dict):
            values[name] = {}
        values = values[name]
    values[last] = value


def is_below(key: str, keys: Sequence[str]) -> bool:
    """Return whether a dotted key equals one of the keys or lies in a section among them."""
    return any(key == name or key.startswith(f"{name}.") for name in keys)


def changes_no_result(key: str, more: Sequence[str] = ()) -> bool:
    """Return whether a dotted key is in or below `CHANGES_NO_RESULT` or `more`."""
    return is_below(key, (*CHANGES_NO_RESULT, *more))
