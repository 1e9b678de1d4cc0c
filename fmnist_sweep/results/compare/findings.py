"""What a comparison finds, as plain values: everything that is shown is worked out here."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from fmnist_sweep.results.compare.sweep_table import SweepTable
from fmnist_sweep.results.compare.verdicts import CONFIDENCE, compared
from fmnist_sweep.results.keys import changes_no_result

TOP = 5
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the smaller budget, at which the best so far is compared
SPLIT = ("data.validation", "data.val_size", "data.split_seed", "data.classes")


def findings(sides: Sequence[SweepTable]) -> dict[str, Any]:
    """Compares every sweep with the first.

    Returns:
        What `--format json` prints; values in the objective's own units, accuracies in [0, 1].
    """
    first = sides[0]
    # Several comparisons would find something by chance: each gets its share of the 5 %.
    confidence = 1 - (1 - CONFIDENCE) / (len(sides) - 1)
    return {
        "objective": first.objective,
        "direction": "maximize" if first.maximize else "minimize",
        "confidence": confidence,
        "sweeps": [_sweep(side) for side in sides],
        "equal_budget": {
            budget: equal for budget in ("epochs", "seconds") if (equal := _equal(sides, budget))
        },
        "winners": _winners(sides),
        "configuration": _different(
            sides,
            [
                {k: v for k, v in side.settings.items() if not changes_no_result(k)}
                for side in sides
            ],
        ),
        "search_space": _spaces(sides),
        "environment": _different(sides, [dict(side.environment) for side in sides]),
        "comparisons": [c for other in sides[1:] for c in compared(first, other, confidence)],
        "warnings": _warnings(sides),
    }


def _sweep(side: SweepTable) -> dict[str, Any]:
    values = side.complete["value"].sort_values(ascending=not side.maximize)
    states = side.rows["state"].value_counts()
    return {
        "name": side.name,
        "source": str(side.source),
        "trials": {state: int(states.get(state, 0)) for state in ("COMPLETE", "PRUNED", "FAILED")},
        **{budget: _total(side.rows[budget]) for budget in ("epochs", "seconds", "images")},
        "best": float(values.iloc[0]),
        "best_trial": int(side.winner["trial"]),
        "median": float(values.median()),
        f"top{TOP}_mean": float(values.head(TOP).mean()),
        "best_std": _known(side.winner["std"]),
        "repeats": _known(side.winner["repeats"]),
    }


def _known(value: Any) -> Any:
    """A value as JSON has it; None for what is missing."""
    if value is None or value is pd.NA or value != value:
        return None
    return value.item() if hasattr(value, "item") else value


def _total(column: "pd.Series[float]") -> float | None:
    return float(column.sum()) if column.notna().any() else None


def anytime(side: SweepTable, budget: str) -> list[tuple[float, float]]:
    """The best complete value so far against what had been spent, a point a complete trial.

    Args:
        budget: epochs or seconds, summed over the trials in their order.
    """
    spent = side.rows[budget].fillna(0).cumsum()
    complete = side.rows["state"] == "COMPLETE"
    values = side.rows["value"][complete]
    so_far = values.cummax() if side.maximize else values.cummin()
    return [(float(x), float(y)) for x, y in zip(spent[complete], so_far)]


def best_within(points: Sequence[tuple[float, float]], limit: float) -> float | None:
    """The last value of an anytime curve within a budget; None before the first."""
    inside = [value for spent, value in points if spent <= limit * (1 + 1e-9)]
    return inside[-1] if inside else None


def _equal(sides: Sequence[SweepTable], budget: str) -> list[dict[str, Any]]:
    """The best so far of each sweep at shares of the smallest budget; none where one is unknown."""
    totals = [_total(side.rows[budget]) for side in sides]
    if not all(totals):
        return []
    smallest = min(total for total in totals if total)
    curves = [anytime(side, budget) for side in sides]
    return [
        {"spent": share * smallest, "best": [best_within(c, share * smallest) for c in curves]}
        for share in SHARES
    ]


def _winners(sides: Sequence[SweepTable]) -> list[dict[str, Any]]:
    """The keys that any sweep varied, and what they are in each one's best trial."""
    keys = dict.fromkeys(key for side in sides for key in side.keys)
    rows = []
    for key in keys:
        values = [_known(side.setting(key, side.winner)) for side in sides]
        rows.append({"key": key, "values": values, "differs": len(set(map(str, values))) > 1})
    return rows


def _different(
    sides: Sequence[SweepTable], values: Sequence[dict[str, Any]]
) -> dict[str, list[Any]]:
    """Keys whose values differ, swept ones left out; only among sweeps that know theirs."""
    if sum(map(bool, values)) < 2:
        return {}
    swept = {key for side in sides for key in side.keys}
    groups = tuple(f"{key}." for key in swept if "." not in key)
    keys = dict.fromkeys(key for some in values for key in some)
    found = {}
    for key in keys:
        if key in swept or key.startswith(groups):
            continue
        own = [some.get(key) if some else None for some in values]
        if len({str(value) for value, some in zip(own, values) if some}) > 1:
            found[key] = own
    return found


def _spaces(sides: Sequence[SweepTable]) -> dict[str, list[str]]:
    """What each swept key was tried at in each sweep, where that differs."""
    keys = dict.fromkeys(key for side in sides for key in side.keys)
    told = {key: [_tried(side, key) for side in sides] for key in keys}
    return {key: texts for key, texts in told.items() if len(set(texts)) > 1}


def _tried(side: SweepTable, key: str) -> str:
    if key not in side.keys:
        fixed = side.settings.get(key)
        return "not swept" if fixed is None else f"{fixed} (fixed)"
    values = side.rows[key].dropna().drop_duplicates()
    if len(values) > 6 and pd.api.types.is_numeric_dtype(values):
        return f"{len(values)} values, {values.min():.4g} to {values.max():.4g}"
    return ", ".join(
        f"{v:.4g}" if isinstance(v, float) else str(v) for v in sorted(values, key=str)
    )


def _warnings(sides: Sequence[SweepTable]) -> list[str]:
    found = [warning for side in sides for warning in side.warnings]
    for side in sides:
        if side.settings.get("data.validation") == "test":
            found.append(
                f"{side.name} selected on the test images (experiment=seed): its values say "
                "nothing about new images, and are no measure for a sweep that did not"
            )
        if not side.settings:
            found.append(
                f"{side.name}: without its run folders its configuration, validation split and "
                "environment are not known"
            )
    known = [side for side in sides if side.settings]
    for one, other in pairwise(known):
        differing = [k for k in SPLIT if one.settings.get(k) != other.settings.get(k)]
        if differing:
            found.append(
                f"{one.name} and {other.name} were validated on different images: "
                + ", ".join(
                    f"{k} {one.settings.get(k)} against {other.settings.get(k)}" for k in differing
                )
            )
    return found
