"""How a sweep spent its time, from the start and end times of its trials."""

from collections.abc import Sequence
from dataclasses import dataclass

from fmnist_sweep.results.series import number
from fmnist_sweep.results.tables import Run

PAUSE = 60.0  # seconds; in a longer gap between two trials the sweep was not running


@dataclass(frozen=True)
class Timing:
    """A sweep's time, in seconds.

    wall: from the first start to the last end, without pauses.
    parts: the time by activity; with parallel processes the parts can add up to more than `wall`.
    done: for each trial that ended, the seconds since the first start, without pauses, and the
        number of trials ended by then.
    """

    wall: float
    parts: dict[str, float]
    done: list[tuple[float, int]]

    @property
    def per_minute(self) -> float:
        """The number of trials ended per minute, without pauses."""
        return 60 * len(self.done) / self.wall if self.wall > 0 else 0.0


def timing(runs: Sequence[Run]) -> Timing | None:
    """Return how the runs spent their time, or None if they lack start and end times."""
    spans = []
    for run in runs:
        began, ended = number(run.summary.get("started")), number(run.summary.get("ended"))
        if began is not None and ended is not None:
            spans.append((began, ended, run))
    if not spans:
        return None
    spans.sort(key=lambda span: span[:2])
    parts = {
        f"epochs of {state} trials": 0.0 for state in ("complete", "paused", "pruned", "failed")
    }
    between = pauses = 0.0
    first = reached = spans[0][0]
    ends = []
    for began, ended, run in spans:
        trained = sum(row.get("seconds", 0.0) for row in run.history)
        parts[f"epochs of {run.state.lower()} trials"] += trained
        gap = max(0.0, began - reached)
        if gap > PAUSE:
            pauses += gap
        else:
            between += gap
        reached = max(reached, ended)
        ends.append(ended - first - pauses)
    wall = reached - first - pauses
    # Trials of a stack overlap, so this is the rest of the time in which any trial ran.
    parts["starting and saving trials"] = max(0.0, wall - between - sum(parts.values()))
    parts["between trials"] = between
    used = {name: seconds for name, seconds in parts.items() if seconds > 0}
    done = [(at, count) for count, at in enumerate(sorted(ends), 1)]
    return Timing(wall, used, done)
