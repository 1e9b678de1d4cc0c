"""A comparison as tables and sentences: on the screen, in Markdown and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fmnist_sweep.results import record
from fmnist_sweep.results.compare.findings import TOP
from fmnist_sweep.results.compare.sweep_table import STATES
from fmnist_sweep.results.facts import duration
from fmnist_sweep.results.metrics import Measure

Rows = list[list[str]]


def tables(findings: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Return the titles of the tables, each with its rows, the head first."""
    measure = Measure(findings["objective"], findings["direction"])
    names = [sweep["name"] for sweep in findings["sweeps"]]
    titled = [(f"Sweeps: {measure.label}", _transposed(_overview(findings, measure)))]
    for budget, points in findings["equal_budget"].items():
        rows = [["after", *names]]
        for point in points:
            rows.append(
                [_spent(budget, point["spent"]), *(_value(measure, v) for v in point["best"])]
            )
        titled.append((f"Best so far after equal {budget}", rows))
    winners = [
        [row["key"], *map(_short, row["values"]), "differs" * row["differs"]]
        for row in findings["winners"]
    ]
    if winners:
        titled.append(("Best configurations", [["", *names, ""], *winners]))
    for title, key in (
        ("Different search spaces", "search_space"),
        ("Different configurations", "configuration"),
        ("Different environments", "environment"),
    ):
        if findings[key]:
            rows = [[name, *map(_short, values)] for name, values in findings[key].items()]
            titled.append((title, [["", *names], *rows]))
    return titled


def _overview(findings: Mapping[str, Any], measure: Measure) -> Rows:
    head = [
        "",
        "trials complete",
        "paused",
        "pruned",
        "failed",
        "epochs",
        "time of all trials",
        "time from start to end",
        "images",
        "best",
        "of trial",
        "median",
        f"top-{TOP} mean",
    ]
    rows = [head]
    for sweep in findings["sweeps"]:
        trials, seconds, images = sweep["trials"], sweep["seconds"], sweep["images"]
        best = _value(measure, sweep["best"])
        if sweep["best_std"] is not None:
            best += f" ± {_value(measure, sweep['best_std'])} (n = {sweep['repeats']:g})"
        rows.append(
            [
                sweep["name"],
                *(str(trials[state]) for state in STATES),
                "-" if sweep["epochs"] is None else f"{sweep['epochs']:,.0f}",
                "-" if seconds is None else duration(seconds),
                "-" if sweep["wall_seconds"] is None else duration(sweep["wall_seconds"]),
                "-" if images is None else f"{images / 1e6:,.2f} million",
                best,
                str(sweep["best_trial"]),
                _value(measure, sweep["median"]),
                _value(measure, sweep[f"top{TOP}_mean"]),
            ]
        )
    return rows


def _transposed(rows: Rows) -> Rows:
    return [list(column) for column in zip(*rows)]


def _spent(budget: str, amount: float) -> str:
    return duration(amount) if budget == "seconds" else f"{amount:,.4g} epochs"


def _value(measure: Measure, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{measure.scale * value:.2f}" if measure.is_accuracy else f"{value:.4g}"


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(findings: Mapping[str, Any], screen: Console) -> None:
    """Print the tables and the sentences."""
    for title, rows in tables(findings):
        screen.print(f"\n{title}", style="bold")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
        for position, name in enumerate(rows[0]):
            table.add_column(name, justify="left" if position == 0 else "right")
        for row in rows[1:]:
            table.add_row(*row)
        screen.print(table)
    screen.print()
    for line in sentences(findings):
        screen.print(line, soft_wrap=True)


def sentences(findings: Mapping[str, Any]) -> list[str]:
    """Return the results in words, then the warnings."""
    lines = [comparison["sentence"] for comparison in findings["comparisons"]]
    if len(findings["sweeps"]) > 2:
        lines.append(
            f"{len(findings['sweeps']) - 1} comparisons: each interval is widened to "
            f"{100 * findings['confidence']:.4g} %, so that all hold together at 95 %."
        )
    return [*lines, *(f"Beware: {warning}" for warning in findings["warnings"])]


def markdown(findings: Mapping[str, Any], picture: str | None) -> str:
    """Return the comparison as a Markdown page.

    Args:
        findings: the result of `findings.findings`.
        picture: the path of the picture, relative to the page; None for no picture.
    """
    names = " and ".join(sweep["name"] for sweep in findings["sweeps"])
    parts = [f"# {_escaped(names)}", ""]
    parts += [f"- {_escaped(line)}" for line in sentences(findings)]
    for title, rows in tables(findings):
        parts += ["", f"## {_escaped(title)}", ""]
        parts.append("| " + " | ".join(map(_escaped, rows[0])) + " |")
        parts.append("|---" + "|---:" * (len(rows[0]) - 1) + "|")
        parts += ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows[1:]]
    if picture:
        parts += ["", f"![Best so far, and best of n trials]({picture})"]
    return "\n".join([*parts, ""])


def _escaped(text: str) -> str:
    """Escape a text for Markdown."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in " ".join(text.split()))


def as_csv(findings: Mapping[str, Any]) -> str:
    """Return the comparison as CSV, one row per sweep, numbers with all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = [_csv_row(sweep) for sweep in findings["sweeps"]]
    writer.writerow(rows[0])
    writer.writerows(map(record.escape_csv_formula, row.values()) for row in rows)
    return text.getvalue()


def _csv_row(sweep: Mapping[str, Any]) -> dict[str, Any]:
    states: Sequence[tuple[str, Any]] = list(sweep["trials"].items())
    rest = {key: value for key, value in sweep.items() if key != "trials"}
    return {"name": rest.pop("name"), **{k.lower(): v for k, v in states}, **rest}
