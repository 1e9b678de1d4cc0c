"""Write a confirmation's tables, sentences and experiment file."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from fmnist_sweep.engine.settings import PiecewiseConfig
from fmnist_sweep.results import facts, record
from fmnist_sweep.results.keys import BELONGS_TO_THE_RUN, CHANGES_NO_RESULT
from fmnist_sweep.results.metrics import Measure
from fmnist_sweep.task.config import Config, as_exclude, conf_folder
from fmnist_sweep.task.confirm.verdict import CandidateResult, Mean


def shown(found: Mean, measure: Measure) -> str:
    """Format a mean: `88.12 ± 0.15 % (95 % interval 87.94 to 88.31, n = 5)`."""
    unit = f" {measure.unit}" if measure.unit else ""
    if found.std is None or found.low is None or found.high is None:
        return f"{_spread(found, measure)}{unit} (n = {found.n})"
    mean, std, low, high = (
        _number(v, measure) for v in (found.mean, found.std, found.low, found.high)
    )
    return f"{mean} ± {std}{unit} (95 % interval {low} to {high}, n = {found.n})"


def _number(value: float, measure: Measure) -> str:
    return f"{measure.scale * value:.2f}" if measure.is_accuracy else f"{value:.4f}"


def show(table: Sequence[CandidateResult], measure: Measure, screen: Console) -> None:
    """Print the candidates on fresh seeds, best first."""
    keys = dict.fromkeys(key for one in table for key in one.candidate.params)
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    unit = f" {measure.unit}" if measure.unit else ""
    heads = ["rank", "trial", *keys, f"search{unit}", f"fresh seeds{unit}", "behind the winner", ""]
    for head in heads:
        made.add_column(head, justify="right", no_wrap=True)
    for rank, one in enumerate(table, 1):
        candidate, fresh, behind = one.candidate, one.fresh, one.behind
        values = (candidate.params.get(key, "") for key in keys)
        notes = ["baseline"] * candidate.is_baseline
        notes += ["within noise of the winner"] * one.within_noise
        notes += ["a training failed"] * (fresh is None)
        made.add_row(
            str(rank),
            candidate.name.removeprefix("trial-"),
            *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values),
            "-" if candidate.value is None else _number(candidate.value, measure),
            "-" if fresh is None else _spread(fresh, measure),
            "-" if behind is None else _spread(behind, measure),
            ", ".join(notes),
            style="bold" if candidate.is_baseline else None,
        )
    screen.print(made)


def _spread(found: Mean, measure: Measure) -> str:
    std = "" if found.std is None else f" ± {_number(found.std, measure)}"
    return _number(found.mean, measure) + std


def sentences(table: Sequence[CandidateResult], bias: Mean | None, measure: Measure) -> list[str]:
    """Describe the winner, its lead over the baseline, and the bias of the search's best value."""
    winner = table[0]
    points = "percentage points" if measure.is_accuracy else measure.unit
    said = []
    if winner.fresh:
        said.append(f"Winner: {winner.candidate.name}, {shown(winner.fresh, measure)}.")
    noisy = [one.candidate.name for one in table if one.within_noise]
    if noisy:
        said.append(f"Within noise of it: {', '.join(noisy)}.")
    base = next((one for one in table if one.candidate.is_baseline), None)
    if base is winner:
        said.append("The baseline wins: the search found nothing better.")
    elif base and base.behind:
        lead = shown(base.behind, measure)
        if measure.is_accuracy:
            lead = lead.replace(" %", f" {points}", 1)
        noise = "within noise" if base.within_noise else "more than noise"
        said.append(f"It beats the baseline by {lead}: {noise}.")
    if bias:
        worse = "better" if bias.mean >= 0 else "worse"
        is_schedule = table[0].candidate.is_schedule
        line = (
            f"The {'population' if is_schedule else 'search'}'s best value was "
            f"{_number(abs(bias.mean), measure)} {points} {worse} than the mean of its "
            f"{'schedule alone, from new weights' if is_schedule else 'configuration'} on fresh "
            "seeds"
        )
        if bias.low is not None and bias.high is not None:
            line += (
                f" (95 % interval {_number(bias.low, measure)} to {_number(bias.high, measure)})"
            )
            luck = (
                "that much was luck, or came from the copies"
                if is_schedule
                else "that much was luck"
            )
            line += f": {luck}." if bias.low > 0 else ": within noise."
        said.append(line if line.endswith(".") else f"{line}.")
    return said


def as_csv(table: Sequence[CandidateResult], measure: Measure) -> str:
    """Return a CSV table: a row for each candidate, best first, and a column for each seed."""
    keys = dict.fromkeys(key for one in table for key in one.candidate.params)
    rows = []
    for rank, one in enumerate(table, 1):
        fresh = asdict(one.fresh) if one.fresh else {}
        behind = asdict(one.behind) if one.behind else {}
        rows.append(
            {
                "rank": rank,
                "name": one.candidate.name,
                "baseline": one.candidate.is_baseline,
                **{key: one.candidate.params.get(key) for key in keys},
                "metric": measure.name,
                "search": one.candidate.value,
                **{key: fresh.get(key) for key in ("mean", "std", "low", "high", "n")},
                **{f"behind_{key}": behind.get(key) for key in ("mean", "low", "high")},
                **{f"seed_{seed}": value for seed, value in one.values.items()},
            }
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(record.escape_csv_formula, rows[0]))
    writer.writerows([record.escape_csv_formula(row.get(key)) for key in rows[0]] for row in rows)
    return text.getvalue()


def as_json(table: Sequence[CandidateResult]) -> list[dict[str, Any]]:
    """Return the candidates for `confirm.json`, best first."""
    return [
        {
            "name": one.candidate.name,
            "baseline": one.candidate.is_baseline,
            "params": dict(one.candidate.params),
            "search": one.candidate.value,
            "values": {str(seed): value for seed, value in one.values.items()},
            "fresh": asdict(one.fresh) if one.fresh else None,
            "behind_winner": asdict(one.behind) if one.behind else None,
            "within_noise_of_winner": one.within_noise,
        }
        for one in table
    ]


def experiment(config: Config, run: Path, sweep: Path) -> str:
    """Return the winner as an experiment file, `experiment/best.yaml`.

    Args:
        run: the winner's run in the sweep, which records the options of the config groups.
        sweep: the sweep's folder, for the command in the header.
    """
    chosen = facts.choices(run)
    if isinstance(config.scheduler, PiecewiseConfig):  # a population has found the schedule
        chosen = {**chosen, "scheduler": config.scheduler.kind}
    kept = config.model_dump(
        by_alias=True,
        exclude_unset=True,
        exclude=as_exclude((*CHANGES_NO_RESULT, *BELONGS_TO_THE_RUN)),
    )
    groups = [
        {f"override /{group}": _option(group, chosen.get(group), kept[group])}
        for group in ("model", "optimizer", "scheduler", "augment")
    ]
    folder = shlex.quote(" ".join(str(sweep).split()))
    head = (
        "# @package _global_\n"
        "# A sweep's winner, confirmed on fresh seeds.\n"
        f"#   python -m fmnist_sweep.train --config-dir {folder} experiment=best\n"
    )
    return head + yaml.safe_dump({"defaults": groups, **kept}, sort_keys=False)


def _option(group: str, chosen: str | None, values: Mapping[str, Any]) -> str | None:
    """Return the option that a group was composed from; None if it is unknown or has more keys."""
    files = {path.stem: path for path in Path(conf_folder(), group).glob("*.yaml")}
    keys = record.read_yaml(files[chosen]) if chosen in files else None
    return chosen if keys and keys.keys() <= values.keys() else None


def show_classes(classes: Sequence[Mapping[str, Any]], screen: Console) -> None:
    """Print the per-class table of the test set."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    made.add_column("class")
    for head in ("images", "accuracy %", "precision %", "F1 %"):
        made.add_column(head, justify="right")
    made.add_column("most often taken for")
    for row in classes:
        spread = row["accuracy_std"]
        made.add_row(
            row["class"],
            f"{row['images']:,}",
            f"{100 * row['accuracy']:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}"),
            f"{100 * row['precision']:.2f}",
            f"{100 * row['f1']:.2f}",
            row["most_often_taken_for"],
        )
    screen.print(made)
