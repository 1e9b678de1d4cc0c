"""Keys of a configuration by what they change."""

from collections.abc import Sequence

# Keys, and sections, that change no result: runs that differ in them alone are the same run.
CHANGES_NO_RESULT = (
    "name",
    "logger",
    "data.root",
    "data.verify",
    "trainer.log_every",
    "trainer.checkpoint",
)


# Keys that belong to a run's seed or its machine and to no selection of a configuration.
BELONGS_TO_THE_RUN = ("seed", "repeats", "trainer.device", "trainer.threads", "trainer.compile")


def is_below(key: str, keys: Sequence[str]) -> bool:
    """Whether a dotted key is one of some keys, or in a section that is one of them."""
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def changes_no_result(key: str, more: Sequence[str] = ()) -> bool:
    """Whether a dotted key is one of `CHANGES_NO_RESULT`, or of `more`."""
    return is_below(key, (*CHANGES_NO_RESULT, *more))
