"""What to do after a sweep, in plain words."""

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fmnist_sweep.results import facts, lineage, series
from fmnist_sweep.results.metrics import Measure
from fmnist_sweep.results.series import number, objective
from fmnist_sweep.results.tables import Run

EDGE = 0.05  # of a range, at its ends
RISE = 0.05  # of the lowest validation loss, after which it has risen
FEWEST_EPOCHS = 6  # of a curve whose noise can be told from its course
MUCH_TIME = 1.5  # times its share of the trials is much of the time for a value
FEWEST_TRIALS = 6  # with a value of a key, and without it


class Range(NamedTuple):
    """The range of a key: its ends, and whether it is searched on a logarithmic scale."""

    low: float
    high: float
    is_log: bool


def advice(folder: Path, runs: Sequence[Run]) -> list[str]:
    """Return sentences on what to do next, the most important first; none if nothing stands out.

    Args:
        folder: the sweep's folder.
        runs: its runs, at least one.
    """
    best = series.best(runs)
    # In a population the values that trials began with say little about what they reached.
    if best is None or len(runs[0].objective) > 1 or lineage.read(folder):
        return []
    return [
        *_edges(facts.ranges(folder), runs, best),
        *_overfitting(best),
        *_lead(folder, runs, best),
        *_time(runs),
    ]


def show(folder: Path, runs: Sequence[Run]) -> None:
    """Print what to do next, a line each."""
    for line in advice(folder, runs):
        print(f"- {line}")


def _edges(ranges: dict[str, str], runs: Sequence[Run], best: Run) -> Iterator[str]:
    for key, value in best.params.items():
        at = number(value)
        if at is None or key == best.seed_key:
            continue
        found = range_of(ranges[key]) if key in ranges else None
        found = found or _tried(key, runs)
        if found is None or not (found.low <= at <= found.high) or found.low == found.high:
            continue
        turn = math.log if found.is_log else float
        place = (turn(at) - turn(found.low)) / (turn(found.high) - turn(found.low))
        if EDGE < place < 1 - EDGE:
            continue
        end, side = (found.low, "below") if place <= EDGE else (found.high, "above")
        yield (
            f"The best trial's {key}={at:.4g} lies at the end of its range, {found.low:.4g} to "
            f"{found.high:.4g}: search {side} {end:.4g} too."
        )


def range_of(text: str) -> Range | None:
    """Return the range that an override gives, such as `tag(log, interval(1e-4, 1e-2))`.

    None if it is a choice or no override of a range.
    """
    found = re.search(r"(interval|range)\(\s*([^,()]+?)\s*,\s*([^,()]+?)\s*(?:,\s*[^()]+)?\)", text)
    if found is None:
        return None
    try:
        low, high = float(found[2]), float(found[3])
    except ValueError:
        return None
    is_log = bool(re.search(r"tag\(\s*log", text)) and low > 0
    if found[1] == "range":  # its end does not belong to it
        high -= 1
    return Range(low, high, is_log)


def _tried(key: str, runs: Sequence[Run]) -> Range | None:
    """Return the ends of a grid of three values or more."""
    values = {number(run.params.get(key)) for run in runs}
    known = sorted(value for value in values if value is not None)
    if None in values or not 3 <= len(known) <= 12:
        return None
    return Range(known[0], known[-1], is_log=known[0] > 0 and known[-1] > 20 * known[0])


def _overfitting(best: Run) -> Iterator[str]:
    """Say if the loss rises while the accuracy does not: the model is sure of its errors."""
    losses = [number(row.get("val_loss")) for row in best.history]
    accuracies = [number(row.get("val_accuracy")) for row in best.history]
    known = [(i, loss) for i, loss in enumerate(losses) if loss is not None]
    if len(known) < FEWEST_EPOCHS or None in accuracies:
        return
    lowest, low = min(known, key=lambda pair: pair[1])
    last = known[-1][1]
    before, after = accuracies[lowest], accuracies[-1]
    assert before is not None and after is not None
    if last > (1 + RISE) * low and after >= before:
        yield (
            f"Its validation loss has risen from {low:.3f} after epoch {lowest + 1} to {last:.3f}, "
            "while the accuracy has not fallen: it grows too sure of its errors. Dropout, weight "
            "decay, label smoothing or augmentation may help."
        )


def _lead(folder: Path, runs: Sequence[Run], best: Run) -> Iterator[str]:
    """Say if the lead over the baseline is within the noise of an epoch."""
    base = series.baseline(runs)
    if base is None or base is best or facts.is_confirmed(folder):
        return
    measure: Measure = series.measures(runs)[0]
    sign = 1 if measure.direction == "maximize" else -1
    own, other = objective(best), objective(base)
    noise = _noise(best, measure.name)
    if own is None or other is None or noise is None:
        return
    lead = sign * (own - other)
    if 0 <= lead < 2 * math.sqrt(2) * noise:
        unit = {"%": " points"}.get(measure.unit, f" {measure.unit}".rstrip())
        yield (
            f"Its lead over the baseline, {measure.scale * lead:.2g}{unit}, is no more than an "
            f"epoch's noise may make: python -m fmnist_sweep.confirm {facts.shown_path(folder)} "
            "tells on fresh seeds."
        )


def _noise(run: Run, name: str) -> float | None:
    """Return the standard deviation of a metric from epoch to epoch, in a curve's second half.

    Second differences leave the curve's own course out: of independent noise their variance is six
    times that of the noise.
    """
    values = [number(row.get(name)) for row in run.history]
    half = [value for value in values[len(values) // 2 :] if value is not None]
    if len(values) < FEWEST_EPOCHS or len(half) < 4:
        return None
    second = [a - 2 * b + c for a, b, c in zip(half, half[1:], half[2:])]
    return math.sqrt(statistics.fmean(d * d for d in second) / 6)


def _time(runs: Sequence[Run]) -> Iterator[str]:
    """Say which value of a key took most of the time."""
    seconds = [number(run.summary.get("seconds")) or 0.0 for run in runs]
    total = sum(seconds)
    candidates: list[tuple[float, str, Any, float]] = []
    for key in dict.fromkeys(key for run in runs for key in run.params):
        values = {str(run.params.get(key)) for run in runs}
        if not 2 <= len(values) <= 12 or not total:
            continue
        for value in values:
            of_value = [s for run, s in zip(runs, seconds) if str(run.params.get(key)) == value]
            share, of_trials = sum(of_value) / total, len(of_value) / len(runs)
            rest = len(runs) - len(of_value)
            enough = min(len(of_value), rest) >= FEWEST_TRIALS
            if enough and share > 0.5 and share > MUCH_TIME * of_trials:
                candidates.append((share / of_trials, key, value, share))
    if candidates:
        _, key, value, share = max(candidates)
        yield f"{share:.0%} of the training time went to trials with {key}={value}."
