"""Confirm a sweep: train its winners on fresh seeds, rank them, test the first."""

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fmnist_sweep.base import processes
from fmnist_sweep.base.errors import ConfigError, RecordError
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results import facts, ranking, record
from fmnist_sweep.results.keys import BELONGS_TO_THE_RUN, changes_no_result
from fmnist_sweep.results.metrics import Measure
from fmnist_sweep.results.publish import publish
from fmnist_sweep.results.tables import Run, Sweep
from fmnist_sweep.task.config import Config
from fmnist_sweep.task.confirm import plots, test_set, writing
from fmnist_sweep.task.confirm.application import Application, is_of_application
from fmnist_sweep.task.confirm.candidates import (
    Candidate,
    application_candidates,
    candidates,
    fresh_seeds,
)
from fmnist_sweep.task.confirm.verdict import (
    CandidateResult,
    Mean,
    mean,
    per_class,
    rank_candidates,
    sampling_error,
    selection_bias,
)

RANKED_BY = ("val_accuracy", "val_loss", "best_val_accuracy")


@dataclass(frozen=True)
class ConfirmOptions:
    """The command line of `python -m fmnist_sweep.confirm`."""

    folder: Path
    top: int
    seeds: int
    refit: bool
    again: bool
    app: str | None


def confirm(options: ConfirmOptions) -> None:
    """Train the winners of a sweep on fresh seeds and rank them.

    For this package's own task, then open the test set for the first of them.

    Raises:
        ConfigError, DataError, RecordError, ReportError: a user's mistake, in one line.
    """
    sweep = Sweep(options.folder)
    sweep.update()
    runs = list(sweep.runs.values())
    if not runs:
        raise ConfigError(f"{options.folder}: holds no finished run; give a sweep's folder")
    if is_of_application(runs[0]):
        _confirm_application(options, runs)
    elif options.app:
        raise ConfigError(
            f"--app={options.app!r}: {options.folder} is a sweep of fmnist_sweep.train"
        )
    else:
        _confirm_training(options, runs)


def _confirm_application(options: ConfirmOptions, runs: Sequence[Run]) -> None:
    """Rerun the winners of another application's sweep. Its test data stay untouched."""
    folder = options.folder
    if options.app is None:
        raise ConfigError(
            f"{folder}: is a sweep of another application; name its command: "
            "--app 'python your_app.py'"
        )
    application = Application(options.app)
    measure = Measure(runs[0].objective[0], runs[0].direction[0])
    found = application_candidates(folder, runs, options.top, measure.name)
    seeds = fresh_seeds(runs, options.seeds)
    _announce(found, seeds)
    results = []
    for number, candidate in enumerate(found, 1):
        name = _name(candidate, seeds)
        values = application.run(folder / "confirm" / name, candidate, seeds, measure)
        known = [value for value in values.values() if value is not None]
        shown = f"{sum(known) / len(known):.4g}" if known else "failed"
        print(f"[{number}/{len(found)}] {name}: {measure.name} {shown}", flush=True)
        results.append((candidate, values))
    table = rank_candidates(results, measure)
    report = _rank(folder, found, table, measure, seeds, comparable=True)
    _write(folder, table, measure, report)
    publish(folder, runs)
    print(f"Written to {folder}: confirm.csv, confirm.json, plots/confirm.png")


def _confirm_training(options: ConfirmOptions, runs: Sequence[Run]) -> None:
    folder = options.folder
    test_set.openings(folder)  # a torn record stops here, not after the training
    measure = _measure(runs[0])
    found = candidates(folder, runs, options.top, measure.name)
    on_test = facts.is_selected_on_test(found[0].values)
    if on_test:
        print(
            f"Beware: {facts.TEST_SELECTION} Fresh seeds are judged on held-out examples instead."
        )
    seeds = fresh_seeds(runs, options.seeds)
    _announce(found, seeds, options.refit)
    table, folders = _train(folder, found, seeds, measure)
    comparable = measure.name in runs[0].objective and not on_test
    report = _rank(folder, found, table, measure, seeds, comparable)
    report["selected_on_test"] = on_test
    _write(folder, table, measure, report)
    if table[0].fresh is None:
        raise ConfigError("Every configuration failed on a fresh seed: the test set stays closed")
    report["test"] = _test(options, table[0], folders, seeds)
    if report["test"] is None:
        publish(folder, runs)
        print(f"Written to {folder}: confirm.csv, confirm.json, plots/confirm.png")
        return
    _write(folder, table, measure, report)
    publish(folder, runs)
    print(
        f"Written to {folder}: confirm.csv, confirm.json, model.pt, experiment/best.yaml, "
        "plots/confirm.png, plots/confusion.png"
    )


def _announce(found: Sequence[Candidate], seeds: Sequence[int], refit: bool = False) -> None:
    """Print what will be trained, and about how long it takes.

    Args:
        refit: the winner, which is not known yet, is trained once more.
    """
    summaries = [record.summary(one.run) or {} for one in found]
    epochs = [len(seeds) * (summary.get("epochs") or 0) for summary in summaries]
    seconds = [len(seeds) * (summary.get("seconds") or 0) for summary in summaries]
    more, n_trained = "", len(found) * len(seeds)
    if refit:
        more = f", then the winner on all training examples, {len(seeds)} more"
        n_trained += len(seeds)
        epochs.append(max(epochs))
        seconds.append(max(map(operator.mul, seconds, _growth(found, summaries, seeds))))
    n_cores = processes.cores()
    print(
        f"{len(found)} configurations on {len(seeds)} fresh seeds, from {seeds[0]} on{more}: "
        f"{n_trained} trainings, {sum(epochs):,} epochs, about "
        f"{facts.duration(sum(seconds) / n_cores)} on {n_cores} "
        f"core{'s' if n_cores > 1 else ''} by the sweep's own times",
        flush=True,
    )


def _growth(
    found: Sequence[Candidate], summaries: Sequence[Mapping[str, Any]], seeds: Sequence[int]
) -> list[float]:
    """Return how many times as many examples each candidate has if nothing is held out."""
    from fmnist_sweep.task.data import splits  # imports torch

    whole = [
        splits.describe(one.config(seeds, validation="train", train_size=None).data).training
        for one in found
    ]
    return [n / (summary.get("train_size") or n) for n, summary in zip(whole, summaries)]


def _rank(
    folder: Path,
    found: Sequence[Candidate],
    table: Sequence[CandidateResult],
    measure: Measure,
    seeds: Sequence[int],
    comparable: bool,
) -> dict[str, Any]:
    """Show the ranking on fresh seeds; return the contents of `confirm.json`.

    Args:
        comparable: the metric on fresh seeds is the one that the search has optimised.
    """
    bias = selection_bias(found, table, measure) if comparable else None
    writing.show(table, measure, ranking.console())
    sentences = writing.sentences(table, bias, measure)
    print("\n".join(sentences), flush=True)
    return {
        "metric": measure.name,
        "direction": measure.direction,
        "seeds": list(seeds),
        "candidates": writing.as_json(table),
        "selection_bias": asdict(bias) if bias else None,
        "sentences": sentences,
    }


def _measure(run: Run) -> Measure:
    """Return the metric that ranks candidates: the objective if it is a validation figure."""
    for name, direction in zip(run.objective, run.direction):
        if name in RANKED_BY:
            return Measure(name, direction)
    return Measure("val_accuracy", "maximize")


def _train(
    folder: Path, found: Sequence[Candidate], seeds: Sequence[int], measure: Measure
) -> tuple[list[CandidateResult], dict[str, Path]]:
    """Train the candidates on the seeds; return them ranked, and the run folders by name."""
    from fmnist_sweep.task.confirm.training import of_seed, trained  # imports torch

    wanted = {_name(one, seeds): one.config(seeds, validation="held_out") for one in found}
    folders = trained(folder / "confirm", list(wanted.items()), _say)

    def value(one: Candidate, seed: int) -> float | None:
        name = _name(one, seeds)
        run = of_seed(folders[name], wanted[name], seed)
        summary = record.summary(run) or {}
        figure = summary.get(measure.name) if summary.get("state") == "COMPLETE" else None
        if not isinstance(figure, int | float | None):
            raise RecordError(f"{run}/summary.json: {measure.name}={figure}: no number")
        return figure

    results = [(one, {seed: value(one, seed) for seed in seeds}) for one in found]
    return rank_candidates(results, measure), folders


def _name(one: Candidate, seeds: Sequence[int]) -> str:
    return f"{one.name}-seeds-{seeds[0]}-{seeds[-1]}"


def _say(line: str) -> None:
    print(line, flush=True)


def _test(
    options: ConfirmOptions, winner: CandidateResult, folders: dict[str, Path], seeds: Sequence[int]
) -> dict[str, Any] | None:
    """Train the winner on all training examples if asked to, and open the test set for it.

    Returns:
        The results; None if the data has no part for testing.
    """
    from fmnist_sweep.task.confirm import testing  # imports torch
    from fmnist_sweep.task.confirm.training import of_seed, trained
    from fmnist_sweep.task.data import splits

    one = winner.candidate
    data = one.config(seeds).data
    if not splits.has_test(data):
        print(f"data={data.kind} has no part for testing: the ranking is the result", flush=True)
        return None
    if options.refit:
        config = one.config(seeds, validation="train", train_size=None)
        name = f"refit-{_name(one, seeds)}"
        print(f"{one.name} on all training examples", flush=True)
        run = trained(options.folder / "confirm", [(name, config)], _say)[name]
    else:
        config, run = one.config(seeds, validation="held_out"), folders[_name(one, seeds)]
    if (record.summary(run) or {}).get("state") != "COMPLETE":
        raise ConfigError(f"{run}: this training failed: the test set stays closed")
    chosen = {seed: of_seed(run, config, seed) for seed in seeds}
    opened = test_set.note(
        options.folder, _selection(one, config, seeds, options.refit), options.again
    )
    results = testing.tested(config, chosen)
    figures = mean([result["test_accuracy"] for result in results.values()])
    names = next(iter(results.values()))["classes"]
    classes = per_class([result["confusion"] for result in results.values()], names)
    _show_test(figures, classes, opened)
    first = chosen[seeds[0]]
    write_atomically(options.folder / "model.pt", (first / "model.pt").read_bytes())
    (options.folder / "experiment").mkdir(exist_ok=True)
    write_atomically(
        options.folder / "experiment/best.yaml",
        writing.experiment(one.config(seeds[:1]), one.run, options.folder),
    )
    picture = plots.confusion(
        [result["confusion"] for result in results.values()],
        names,
        f"Test examples, mean over {len(seeds)} seeds: {100 * figures.mean:.2f} % right",
    )
    write_atomically(options.folder / "plots/confusion.png", picture)
    return {
        "name": one.name,
        "refit": options.refit,
        "accuracy": asdict(figures),
        "by_seed": {str(seed): result["test_accuracy"] for seed, result in results.items()},
        "loss_by_seed": {str(seed): result["test_loss"] for seed, result in results.items()},
        "per_class": classes,
        "opened_for": opened,
        "model_of_seed": seeds[0],
    }


def _selection(one: Candidate, config: Config, seeds: Sequence[int], refit: bool) -> dict[str, Any]:
    """Describe the models that the test set is opened for; equal only for the same models."""
    values = facts.flat(config.model_dump(by_alias=True, exclude_unset=True))
    kept = {k: v for k, v in values.items() if not changes_no_result(k, BELONGS_TO_THE_RUN)}
    return {"name": one.name, "seeds": list(seeds), "refit": refit, "config": kept}


def _show_test(figures: Mean, classes: Sequence[dict[str, Any]], opened: int) -> None:
    accuracy = Measure("test_accuracy", "maximize")
    images = sum(row["images"] for row in classes)
    writing.show_classes(classes, ranking.console())
    print(f"Test accuracy: {writing.shown(figures, accuracy)}")
    is_of_seeds = "The interval is that of the seeds; other" if figures.low is not None else "Other"
    print(
        f"{is_of_seeds} {images:,} examples would move the mean by up "
        f"to {100 * sampling_error(figures.mean, images):.2f} percentage points (95 %)."
    )
    if opened > 1:
        print(f"Beware: this is selection {opened} that the test set was opened for.")


def _write(
    folder: Path, table: Sequence[CandidateResult], measure: Measure, report: dict[str, Any]
) -> None:
    write_atomically(folder / "confirm.csv", writing.as_csv(table, measure))
    write_atomically(folder / "confirm.json", json.dumps(report, indent=2, default=str) + "\n")
    (folder / "plots").mkdir(exist_ok=True)
    write_atomically(folder / "plots/confirm.png", plots.candidates(table, measure))
