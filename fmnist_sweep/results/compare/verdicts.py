"""Which of two sweeps is better, by how much and how sure that is, in numbers and words."""

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
    """The values of the configurations that both sweeps completed, in a fixed order.

    A configuration is the values of all keys that either one swept; a key that only one swept
    must be known, as a fixed one, in the other. Repeated configurations count by their mean.
    """
    keys = [*a.keys, *(key for key in b.keys if key not in a.keys)]
    if not keys:
        return []
    tables = []
    for side in (a, b):
        values: dict[str, list[float]] = {}
        for _, row in side.complete.iterrows():
            own = [side.setting(key, row) for key in keys]
            missing = any(v is None and key not in side.keys for key, v in zip(keys, own))
            if not missing:
                values.setdefault(repr([_canonical(v) for v in own]), []).append(row["value"])
        tables.append({name: math.fsum(some) / len(some) for name, some in values.items()})
    return [(tables[0][name], tables[1][name]) for name in sorted(tables[0]) if name in tables[1]]


def _canonical(value: Any) -> Any:
    """The same for a value as a CSV and as a run folder has it: 1 and 1.0, true and True."""
    if value is None or value == "":  # which a table cannot tell apart
        return None
    text = str(value)
    if text in ("True", "False"):
        return text.lower()
    try:
        return float(text)
    except ValueError:
        return text[1:] if text[:1] == "'" and record.escape_csv_formula(text[1:]) == text else text


def compared(a: SweepTable, b: SweepTable, confidence: float) -> list[dict[str, Any]]:
    """Every comparison of two sweeps that their trials allow."""
    sign = 1 if a.maximize else -1
    made = []
    both = shared(a, b)
    partly = 1 < len(both) < max(len(a.complete), len(b.complete))
    same_runs = partly and all(x == y for x, y in both)
    if len(both) > 1:
        difference = statistics.paired([sign * (y - x) for x, y in both], confidence)
        made.append(_told(a, b, "shared configurations", difference))
        if same_runs:
            made[-1]["sentence"] = (
                f"The {len(both)} configurations that both tried have the very same values, as "
                "the same runs have: they say nothing about the two searches."
            )
    repeats = [_repeats(side, sign) for side in (a, b)]
    if repeats[0] and repeats[1]:
        difference = statistics.welch(repeats[0], repeats[1], confidence)
        made.append(_told(a, b, "winners", difference))
    if not made or same_runs or all(one["low"] is None for one in made):
        values = [(sign * side.complete["value"]).tolist() for side in (a, b)]
        difference = statistics.best_of_n(values[0], values[1], confidence)
        made.append(_told(a, b, "best of n", difference))
    return made


def _repeats(side: SweepTable, sign: int) -> tuple[float, float, int] | None:
    """The winner's mean, standard deviation and number of repeats, where it has at least two."""
    row = side.winner
    if row["std"] != row["std"] or not row["repeats"] >= 2:
        return None
    return sign * row["value"], row["std"], int(row["repeats"])


_KINDS = {
    "shared configurations": "On the {n} configurations that both tried, {who} is better by {by} "
    "on average",
    "winners": "The winner of {better} beats that of {worse} by {by} (means over repeats)",
    "best of n": "With {n} trials each, {better} can be expected to find a best value that is "
    "better by {by}",
}


def _told(a: SweepTable, b: SweepTable, kind: str, found: Difference) -> dict[str, Any]:
    """A comparison with its sentence."""
    measure = Measure(a.objective, "maximize" if a.maximize else "minimize")
    better, worse = (b, a) if found.value >= 0 else (a, b)
    unit = {"%": "percentage points"}.get(measure.unit, measure.unit)

    def shown(value: float) -> str:
        return f"{measure.scale * value:.3g}"

    words = {
        "n": found.n,
        "who": better.name,
        "better": better.name,
        "worse": worse.name,
        "by": f"{shown(abs(found.value))} {unit}".strip(),
    }
    text = _KINDS[kind].format(**words)
    if found.low is None or found.high is None:
        text += "; too few to say how sure that is."
    elif found.value == found.low == found.high == 0:
        text = f"{a.name} and {b.name} do not differ at all ({kind})."
    else:
        flip = 1 if found.value >= 0 else -1
        ends = sorted((flip * found.low, flip * found.high))
        level = f"{100 * CONFIDENCE:g} % interval {shown(ends[0])} to {shown(ends[1])}"
        test = f", p = {found.p:.2g}" if found.p is not None else ""
        noise = ": within noise." if found.within_noise else ": more than noise."
        text += f" ({level}{test}){noise}"
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
        "within_noise": found.within_noise,
        **asdict(found),
        "sentence": text,
    }
