"""The findings of a comparison, as plain values; nothing shown is computed elsewhere."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pandas as pd

from fmnist_sweep.results.compare.sweep_table import DATA, STATES, SweepTable
from fmnist_sweep.results.compare.verdicts import CONFIDENCE, compared
from fmnist_sweep.results.keys import changes_no_result

TOP = 5
SHARES = (
    0.25,
    0.5,
    0.75,
    1.0,
)  # shares of the smallest budget at which the best so far is compared
SPLIT = ("data.validation", "data.val_size", "data.split_seed", "data.classes")


def findings(tables: Sequence[SweepTable]) -> dict[str, Any]:
    """Compare every sweep with the first.

    Args:
        tables: at least two, with the same objective and direction.

    Returns:
        The content of `--format json`; values in the objective's unit, accuracies in [0, 1].
    """
    first = tables[0]
    # Bonferroni: with several comparisons, each gets its share of the 5 %.
    confidence = 1 - (1 - CONFIDENCE) / (len(tables) - 1)
    return {
        "objective": first.objective,
        "direction": "maximize" if first.maximize else "minimize",
        "confidence": confidence,
        "sweeps": [_sweep(table) for table in tables],
        "equal_budget": {
            budget: equal for budget in ("epochs", "seconds") if (equal := _equal(tables, budget))
        },
        "winners": _winners(tables),
        "configuration": _different(
            tables,
            [
                {k: v for k, v in table.settings.items() if not changes_no_result(k)}
                for table in tables
            ],
        ),
        "search_space": _spaces(tables),
        "environment": _different(tables, [dict(table.environment) for table in tables]),
        "comparisons": [c for other in tables[1:] for c in compared(first, other, confidence)],
        "warnings": _warnings(tables),
    }


def _sweep(table: SweepTable) -> dict[str, Any]:
    values = table.complete["value"].sort_values(ascending=not table.maximize)
    states = table.rows["state"].value_counts()
    return {
        "name": table.name,
        "source": str(table.source),
        "trials": {state: int(states.get(state, 0)) for state in STATES},
        **{budget: _total(table.rows[budget]) for budget in ("epochs", "seconds", "images")},
        "wall_seconds": table.wall,
        "best": float(values.iloc[0]),
        "best_trial": int(table.winner["trial"]),
        "median": float(values.median()),
        f"top{TOP}_mean": float(values.head(TOP).mean()),
        "best_std": _known(table.winner["std"]),
        "repeats": _known(table.winner["repeats"]),
    }


def _known(value: Any) -> Any:
    """Return a value for JSON, None if it is missing."""
    if value is None or value is pd.NA or value != value:
        return None
    return value.item() if hasattr(value, "item") else value


def _total(column: "pd.Series[float]") -> float | None:
    return float(column.sum()) if column.notna().any() else None


def anytime(table: SweepTable, budget: str) -> list[tuple[float, float]]:
    """Return the spent budget and the best value so far at each complete trial.

    Args:
        table: the sweep.
        budget: epochs or seconds; summed over the trials, also pruned and failed ones, in order.
    """
    spent = table.rows[budget].fillna(0).cumsum()
    complete = table.rows["state"] == "COMPLETE"
    values = table.rows["value"][complete]
    so_far = values.cummax() if table.maximize else values.cummin()
    return [(float(x), float(y)) for x, y in zip(spent[complete], so_far)]


def best_within(points: Sequence[tuple[float, float]], limit: float) -> float | None:
    """Return the last value of an anytime curve within a budget, or None before the first."""
    values = [value for spent, value in points if spent <= limit * (1 + 1e-9)]
    return values[-1] if values else None


def _equal(tables: Sequence[SweepTable], budget: str) -> list[dict[str, Any]]:
    """Return each sweep's best at shares of the smallest budget; empty if a budget is unknown."""
    totals = [_total(table.rows[budget]) for table in tables]
    if not all(totals):
        return []
    smallest = min(total for total in totals if total)
    curves = [anytime(table, budget) for table in tables]
    return [
        {"spent": share * smallest, "best": [best_within(c, share * smallest) for c in curves]}
        for share in SHARES
    ]


def _winners(tables: Sequence[SweepTable]) -> list[dict[str, Any]]:
    """Return the keys that any sweep varied, with their values in each sweep's best trial."""
    keys = dict.fromkeys(key for table in tables for key in table.keys)
    rows = []
    for key in keys:
        values = [_known(table.setting(key, table.winner)) for table in tables]
        rows.append({"key": key, "values": values, "differs": len(set(map(str, values))) > 1})
    return rows


def _different(
    tables: Sequence[SweepTable], values: Sequence[dict[str, Any]]
) -> dict[str, list[Any]]:
    """Return the fixed keys whose values differ between sweeps; empty mappings are unknown."""
    if sum(map(bool, values)) < 2:
        return {}
    swept = {key for table in tables for key in table.keys}
    groups = tuple(f"{key}." for key in swept if "." not in key)
    keys = dict.fromkeys(key for known in values for key in known)
    found = {}
    for key in keys:
        if key in swept or key.startswith(groups):
            continue
        row = [known.get(key) if known else None for known in values]
        if len({str(value) for value, known in zip(row, values) if known}) > 1:
            found[key] = row
    return found


def _spaces(tables: Sequence[SweepTable]) -> dict[str, list[str]]:
    """Return the swept keys whose ranges differ, or else their tried values, as text."""
    keys = dict.fromkeys(key for table in tables for key in table.keys)
    tried = {key: [_tried(table, key) for table in tables] for key in keys}
    return {key: texts for key, texts in tried.items() if len(set(texts)) > 1}


def _tried(table: SweepTable, key: str) -> str:
    if key not in table.keys:
        fixed = table.settings.get(key)
        return "not swept" if fixed is None else f"{fixed} (fixed)"
    if key in table.ranges:
        return table.ranges[key]
    values = table.rows[key].dropna().drop_duplicates()
    if len(values) > 6 and pd.api.types.is_numeric_dtype(values):
        return f"{len(values)} values, {values.min():.4g} to {values.max():.4g}"
    return ", ".join(
        f"{v:.4g}" if isinstance(v, float) else str(v) for v in sorted(values, key=str)
    )


def _warnings(tables: Sequence[SweepTable]) -> list[str]:
    found = [warning for table in tables for warning in table.warnings]
    for table in tables:
        if table.settings.get("data.validation") == "test":
            found.append(
                f"{table.name} selected on the test images (experiment=seed): its values say "
                "nothing about new images, and are no measure for a sweep that did not"
            )
        if not table.settings:
            found.append(
                f"{table.name}: without its run folders its configuration, validation split and "
                "environment are not known"
            )
    known = [table for table in tables if table.settings]
    for a, b in pairwise(known):
        if (x := a.environment.get(DATA)) and (y := b.environment.get(DATA)) and x != y:
            found.append(f"{a.name} and {b.name} were trained on different data: {x} against {y}")
        differing = [k for k in SPLIT if a.settings.get(k) != b.settings.get(k)]
        if differing:
            found.append(
                f"{a.name} and {b.name} were validated on different images: "
                + ", ".join(
                    f"{k} {a.settings.get(k)} against {b.settings.get(k)}" for k in differing
                )
            )
    return found
