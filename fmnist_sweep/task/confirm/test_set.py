"""Record in the sweep's folder when the test set was opened and for which models.

A test set that decides between models no longer measures them. It is therefore opened for one
selection; a second one needs `--again`. `test_set.json` lists all of them.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.results import record

FILE = "test_set.json"


def openings(folder: Path) -> list[dict[str, Any]]:
    """Return the selections that the test set was opened for, oldest first.

    Raises:
        ConfigError: the record is torn or edited.
    """
    try:
        noted: Any = record.read_json(folder, FILE)["opened"]
        if not isinstance(noted, list):
            raise TypeError
        if not all(isinstance(one["selection"], dict) for one in noted):
            raise TypeError
        return noted
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError):
        raise ConfigError(
            f"{folder / FILE}: torn or edited: whether the test set was opened is not known; "
            "restore it, or delete it if it never was"
        ) from None


def note(folder: Path, selection: Mapping[str, Any], again: bool) -> int:
    """Record an opening before it happens, so that no interruption can hide it.

    Args:
        selection: the models to be tested. The same selection, after an interruption, is recorded
            once.

    Returns:
        The number of selections that the test set has been opened for, this one included.

    Raises:
        ConfigError: the test set was opened for another selection, and `again` is false.
    """
    before = openings(folder)
    plain = json.loads(json.dumps(selection))
    for number, one in enumerate(before, 1):
        if one["selection"] == plain:
            return number
    if before and not again:
        last = before[-1]
        raise ConfigError(
            f"{folder / FILE}: the test set was opened on {last.get('when')} for "
            f"{last['selection'].get('name')}, seeds {last['selection'].get('seeds')}; --again "
            "opens it for this selection too, which is recorded"
        )
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    opened = [*before, {"when": when, "again": bool(before), "selection": plain}]
    record.write_json(folder, FILE, {"opened": opened})
    return len(opened)
