"""Groups of configuration keys: keys without effect on results, keys of a single run."""

from collections.abc import Sequence

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


def is_below(key: str, keys: Sequence[str]) -> bool:
    """Return whether a dotted key equals one of the keys or lies in a section among them."""
    return any(key == name or key.startswith(f"{name}.") for name in keys)


def changes_no_result(key: str, more: Sequence[str] = ()) -> bool:
    """Return whether a dotted key is in or below `CHANGES_NO_RESULT` or `more`."""
    return is_below(key, (*CHANGES_NO_RESULT, *more))
