"""Which of two sweeps is better, by how much and with what certainty, in numbers and words."""

import math
from dataclasses import asdict
from typing import Any

from fmnist_sweep.results import record
from fmnist_sweep.results.compare import statistics
from fmnist_sweep.results.compare.statistics import Difference
from fmnist_sweep.results.compare.sweep_table import SweepTable
from fmnist_sweep.results.metrics import Measure

CONFIDENCE = 0.95


def shared(a: SweepTable, b: SweepTable) -> list[tuple[float, float]]:
    """Return the value pairs of the configurations that both sweeps completed, in a fixed order.

    A configuration consists of the values of all keys that either sweep varied. If only one of the
    sweeps varied a key, the other's fixed value must be known. A repeated configuration counts by
    its mean.
    """
    keys = [*a.keys, *(key for key in b.keys if key not in a.keys)]
    if not keys:
        return []
    means = []
    for table in (a, b):
        values: dict[str, list[float]] = {}
        for _, row in table.complete.iterrows():
            settings = [table.setting(key, row) for key in keys]
            missing = any(v is None and key not in table.keys for key, v in zip(keys, settings))
            if not missing:
                name = repr([_canonical(v) for v in settings])
                values.setdefault(name, []).append(row["value"])
        means.append({name: math.fsum(same) / len(same) for name, same in values.items()})
    return [(means[0][name], means[1][name]) for name in sorted(means[0]) if name in means[1]]


def _canonical(value: Any) -> Any:
    """Unify values from CSV files and from run folders: 1 and 1.0, true and True."""
    if value is None or value == "":  # both are an empty cell in a table
        return None
    text = str(value)
    if text in ("True", "False"):
        return text.lower()
    try:
        return float(text)
    except ValueError:
        return text[1:] if text[:1] == "'" and record.escape_csv_formula(text[1:]) == text else text


def compared(a: SweepTable, b: SweepTable, confidence: float) -> list[dict[str, Any]]:
    """Return all comparisons of two sweeps that their trials allow.

    Args:
        a, b: sweeps with the same objective and direction.
        confidence: the level of the intervals, in (0, 1).
    """
    sign = 1 if a.maximize else -1
    comparisons = []
    both = shared(a, b)
    partly = 1 < len(both) < max(len(a.complete), len(b.complete))
    same_runs = partly and all(x == y for x, y in both)
    if len(both) > 1:
        difference = statistics.paired([sign * (y - x) for x, y in both], confidence)
        comparisons.append(_comparison(a, b, "shared configurations", difference, confidence))
        if same_runs:
            comparisons[-1]["sentence"] = (
                f"The {len(both)} configurations that both tried have the very same values, as "
                "the same runs have: they say nothing about the two searches."
            )
    repeats = [_repeats(table, sign) for table in (a, b)]
    if repeats[0] and repeats[1]:
        difference = statistics.welch(repeats[0], repeats[1], confidence)
        comparisons.append(_comparison(a, b, "winners", difference, confidence))
    if not comparisons or same_runs or all(c["low"] is None for c in comparisons):
        values = [(sign * table.complete["value"]).tolist() for table in (a, b)]
        difference = statistics.best_of_n(values[0], values[1], confidence)
        comparisons.append(_comparison(a, b, "best of n", difference, confidence))
    return comparisons


def _repeats(table: SweepTable, sign: int) -> tuple[float, float, int] | None:
    """Return the winner's mean, standard deviation and number of repeats, None below two."""
    row = table.winner
    if row["std"] != row["std"] or not row["repeats"] >= 2:
        return None
    return sign * row["value"], row["std"], int(row["repeats"])


_SENTENCES = {
    "shared configurations": "On the {n} configurations that both tried, {who} is better by {by} "
    "on average",
    "winners": "The winner of {better} beats that of {worse} by {by} (means over repeats)",
    "best of n": "With {n} trials each, {better} can be expected to find a best value that is "
    "better by {by}",
}


def _premise(a: SweepTable, b: SweepTable) -> str:
    """Return what the sweeps of a comparison had, where it was not the same."""
    counts = [f"{len(table.complete)} complete trials" for table in (a, b)]
    totals = [float(table.rows["epochs"].sum()) for table in (a, b)]
    if all(totals) and not 0.95 < totals[0] / totals[1] < 1.05:
        counts = [f"{text} and {total:,.0f} epochs" for text, total in zip(counts, totals)]
    return f"{a.name} has {counts[0]}, {b.name} {counts[1]}"


def _comparison(
    a: SweepTable, b: SweepTable, kind: str, difference: Difference, confidence: float
) -> dict[str, Any]:
    """Return a comparison as plain values, with its sentence."""
    measure = Measure(a.objective, "maximize" if a.maximize else "minimize")
    better, worse = (b, a) if difference.value >= 0 else (a, b)
    unit = {"%": "percentage points"}.get(measure.unit, measure.unit)

    def shown(value: float) -> str:
        return f"{measure.scale * value:.3g}"

    words = {
        "n": difference.n,
        "who": better.name,
        "better": better.name,
        "worse": worse.name,
        "by": f"{shown(abs(difference.value))} {unit}".strip(),
    }
    text = _SENTENCES[kind].format(**words)
    if difference.low is None or difference.high is None:
        text += "; too few to say how sure that is."
    elif difference.value == difference.low == difference.high == 0:
        text = f"{a.name} and {b.name} do not differ at all ({kind})."
    else:
        flip = 1 if difference.value >= 0 else -1
        ends = sorted((flip * difference.low, flip * difference.high))
        level = f"{100 * confidence:.4g} % interval {shown(ends[0])} to {shown(ends[1])}"
        test = f", p = {difference.p:.2g}" if difference.p is not None else ""
        noise = ": within noise." if difference.within_noise else ": more than noise."
        premise = f"; {_premise(a, b)}" if kind == "best of n" else ""
        text += f" ({level}{test}{premise}){noise}"
        if kind == "winners":
            text += (
                " Each was picked for these very values, which flatters both: "
                "python -m fmnist_sweep.confirm trains winners anew."
            )
    return {
        "a": a.name,
        "b": b.name,
        "kind": kind,
        "better": better.name,
        "within_noise": difference.within_noise,
        **asdict(difference),
        "sentence": text,
    }
