"""A comparison as tables and sentences: on a screen, in Markdown, as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from fmnist_sweep.results import record
from fmnist_sweep.results.compare.findings import TOP
from fmnist_sweep.results.facts import duration
from fmnist_sweep.results.metrics import Measure

Rows = list[list[str]]


def tables(found: Mapping[str, Any]) -> list[tuple[str, Rows]]:
    """Titles, and below each its rows, a head first."""
    measure = Measure(found["objective"], found["direction"])
    names = [sweep["name"] for sweep in found["sweeps"]]
    made = [(f"Sweeps: {measure.label}", _transposed(_overview(found, measure)))]
    for budget, points in found["equal_budget"].items():
        rows = [["after", *names]]
        for point in points:
            rows.append(
                [_spent(budget, point["spent"]), *(_value(measure, v) for v in point["best"])]
            )
        made.append((f"Best so far after equal {budget}", rows))
    winners = [
        [row["key"], *map(_short, row["values"]), "differs" * row["differs"]]
        for row in found["winners"]
    ]
    if winners:
        made.append(("Best configurations", [["", *names, ""], *winners]))
    for title, key in (
        ("Different search spaces", "search_space"),
        ("Different configurations", "configuration"),
        ("Different environments", "environment"),
    ):
        if found[key]:
            rows = [[name, *map(_short, values)] for name, values in found[key].items()]
            made.append((title, [["", *names], *rows]))
    return made


def _overview(found: Mapping[str, Any], measure: Measure) -> Rows:
    head = [
        "",
        "trials complete",
        "pruned",
        "failed",
        "epochs",
        "time",
        "images",
        "best",
        "of trial",
        "median",
        f"top-{TOP} mean",
    ]
    rows = [head]
    for sweep in found["sweeps"]:
        trials, seconds, images = sweep["trials"], sweep["seconds"], sweep["images"]
        best = _value(measure, sweep["best"])
        if sweep["best_std"] is not None:
            best += f" ± {_value(measure, sweep['best_std'])} (n = {sweep['repeats']:g})"
        rows.append(
            [
                sweep["name"],
                *(str(trials[state]) for state in ("COMPLETE", "PRUNED", "FAILED")),
                "-" if sweep["epochs"] is None else f"{sweep['epochs']:,.0f}",
                "-" if seconds is None else duration(seconds),
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


def show(found: Mapping[str, Any], screen: Console) -> None:
    """Prints everything."""
    for title, rows in tables(found):
        screen.print(f"\n{title}", style="bold")
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
        for position, name in enumerate(rows[0]):
            table.add_column(name, justify="left" if position == 0 else "right")
        for row in rows[1:]:
            table.add_row(*row)
        screen.print(table)
    screen.print()
    for line in sentences(found):
        screen.print(line, soft_wrap=True)


def sentences(found: Mapping[str, Any]) -> list[str]:
    """What the numbers say, then what to beware of."""
    said = [comparison["sentence"] for comparison in found["comparisons"]]
    if len(found["sweeps"]) > 2:
        said.append(
            f"{len(found['sweeps']) - 1} comparisons: each interval is widened to "
            f"{100 * found['confidence']:.4g} %, so that all hold together at 95 %."
        )
    return [*said, *(f"Beware: {warning}" for warning in found["warnings"])]


def markdown(found: Mapping[str, Any], picture: str) -> str:
    """A page that stands on its own beside its picture."""
    names = " and ".join(sweep["name"] for sweep in found["sweeps"])
    parts = [f"# {_escaped(names)}", ""]
    parts += [f"- {_escaped(line)}" for line in sentences(found)]
    for title, rows in tables(found):
        parts += ["", f"## {_escaped(title)}", ""]
        parts.append("| " + " | ".join(map(_escaped, rows[0])) + " |")
        parts.append("|---" + "|---:" * (len(rows[0]) - 1) + "|")
        parts += ["| " + " | ".join(map(_escaped, row)) + " |" for row in rows[1:]]
    return "\n".join([*parts, "", f"![Best so far, and best of n trials]({picture})", ""])


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in " ".join(text.split()))


def as_csv(found: Mapping[str, Any]) -> str:
    """One row a sweep, numbers with every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    rows = [_csv_row(sweep) for sweep in found["sweeps"]]
    writer.writerow(rows[0])
    writer.writerows(map(record.escape_csv_formula, row.values()) for row in rows)
    return text.getvalue()


def _csv_row(sweep: Mapping[str, Any]) -> dict[str, Any]:
    states: Sequence[tuple[str, Any]] = list(sweep["trials"].items())
    rest = {key: value for key, value in sweep.items() if key != "trials"}
    return {"name": rest.pop("name"), **{k.lower(): v for k, v in states}, **rest}
