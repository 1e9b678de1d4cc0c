"""How a sweep spent its time, from the start and end times of its trials."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fmnist_sweep.results.series import number, objective
from fmnist_sweep.results.tables import Run

PAUSE = 60.0  # seconds; in a longer gap between two trials the sweep was not running


class Part(NamedTuple):
    """A part of a trial without a pause, in seconds since the first start.

    epochs: those that the trial had by its end.
    state: PAUSED if the trial was paused then, else the trial's state.
    """

    trial: int
    began: float
    ended: float
    epochs: int
    state: str


@dataclass(frozen=True)
class Timing:
    """A sweep's time, in seconds.

    wall: from the first start to the last end, without pauses.
    parts: the time by activity; with parallel processes the parts can add up to more than `wall`.
    done: for each trial that ended, the seconds since the first start, without pauses, and the
        number of trials ended by then.
    best: the same with the best value of the first objective by then, of all trials that had ended
        or were paused.
    schedule: the parts of all trials, by start, if a trial was ever paused.
    """

    wall: float
    parts: dict[str, float]
    done: list[tuple[float, int]]
    best: list[tuple[float, float]]
    schedule: list[Part]

    @property
    def per_minute(self) -> float:
        """The number of trials ended per minute, without pauses."""
        return 60 * len(self.done) / self.wall if self.wall > 0 else 0.0


def timing(runs: Sequence[Run]) -> Timing | None:
    """Return how the runs spent their time, or None if they lack start and end times."""
    spans = sorted((span for run in runs for span in _spans(run)), key=lambda span: span[:2])
    if not spans:
        return None
    states = ("complete", "paused", "pruned", "failed")
    parts = {f"epochs of {state} trials": 0.0 for state in states}
    between = pauses = 0.0
    first = reached = spans[0][0]
    ends: list[float] = []
    best: list[tuple[float, float]] = []
    schedule: list[Part] = []
    for began, ended, run, epochs in spans:
        gap = max(0.0, began - reached)
        if gap > PAUSE:
            pauses += gap
        else:
            between += gap
        reached = max(reached, ended)
        at = ended - first - pauses
        state = run.state if epochs == len(run.history) else "PAUSED"
        schedule.append(Part(run.trial, max(0.0, began - first - pauses), at, epochs, state))
        value = _value_after(run, epochs)
        if value is not None:
            best.append((at, value))
        if epochs == len(run.history) and run.state != "PAUSED":
            parts[f"epochs of {run.state.lower()} trials"] += _trained(run)
            ends.append(at)
        elif epochs == len(run.history):
            parts["epochs of paused trials"] += _trained(run)
    wall = reached - first - pauses
    # Trials of a stack overlap, so this is the rest of the time in which any trial ran.
    parts["starting and saving trials"] = max(0.0, wall - between - sum(parts.values()))
    parts["between trials"] = between
    used = {name: seconds for name, seconds in parts.items() if seconds > 0}
    done = [(at, count) for count, at in enumerate(sorted(ends), 1)]
    running_best = _running_best(best, runs[0].direction[0] == "maximize")
    has_pauses = any(part.state == "PAUSED" for part in schedule)
    return Timing(wall, used, done, running_best, schedule if has_pauses else [])


def _spans(run: Run) -> Iterator[tuple[float, float, Run, int]]:
    """Yield start and end of each part of a run, and the number of epochs by its end."""
    for pause in run.pauses:
        yield pause.started, pause.ended, run, pause.epochs
    began, ended = number(run.summary.get("started")), number(run.summary.get("ended"))
    if began is not None and ended is not None:
        yield began, ended, run, len(run.history)


def _trained(run: Run) -> float:
    return sum(row.get("seconds", 0.0) for row in run.history)


def _value_after(run: Run, epochs: int) -> float | None:
    """Return the first objective after a number of epochs; None if it is not known."""
    if epochs == len(run.history):
        return objective(run)
    return number(run.history[epochs - 1].get(run.objective[0])) if epochs else None


def _running_best(
    values: Sequence[tuple[float, float]], maximize: bool
) -> list[tuple[float, float]]:
    """Return those times and values that are better than all before, by time."""
    found: list[tuple[float, float]] = []
    for at, value in sorted(values):
        if not found or (value > found[-1][1] if maximize else value < found[-1][1]):
            found.append((at, value))
    return found
