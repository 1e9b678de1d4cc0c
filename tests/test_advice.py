"""What a sweep's end and its page advise."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fmnist_sweep.results import page, record
from fmnist_sweep.results.advice import advice, range_of
from fmnist_sweep.results.record import Epoch
from fmnist_sweep.results.tables import Run, Sweep
from tests import sweeps
from tests.conftest import Command
from tests.sweeps import trial

RATE, BATCH = "optimizer.lr", "data.batch_size"


def runs_of(folder: Path) -> list[Run]:
    sweep = Sweep(folder)
    sweep.update()
    return [run for _, run in sorted(sweep.runs.items())]


def search(folder: Path, *trials: dict[str, Any], **ranges: str) -> list[str]:
    """The advice on a search with declared ranges."""
    sweeps.write(folder, trials)
    started = {
        "hydra": {"sweeper": {"params": {k.replace("__", "."): v for k, v in ranges.items()}}}
    }
    (folder / "multirun.yaml").write_text(yaml.safe_dump(started))
    return advice(folder, runs_of(folder))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("tag(log, interval(1e-4, 1e-2))", (1e-4, 1e-2, True)),
        ("interval(0,0.5)", (0, 0.5, False)),
        ("int(interval(10, 50))", (10, 50, False)),
        ("range(64, 513, 64)", (64, 512, False)),
        ("choice(16, 32)", None),
        ("0.1,0.2", None),
    ],
)
def test_declared_ranges(text: str, found: Any) -> None:
    assert range_of(text) == found


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        (0.0099, "0.0001 to 0.01: search above 0.01 too"),
        (0.000102, "0.0001 to 0.01: search below 0.0001 too"),
        (0.001, None),
    ],
)
def test_a_best_value_at_the_edge(rate: float, said: str | None, tmp_path: Path) -> None:
    declared = {"optimizer__lr": "tag(log,interval(1e-4,1e-2))"}
    rows = [trial(0.7, params={RATE: 0.003}), trial(0.8, params={RATE: rate})]
    found = search(tmp_path / "a", *rows, **declared)
    assert (f"The best trial's optimizer.lr={rate:.4g} lies at" in "".join(found)) == bool(said)
    assert said is None or said in found[0]


def test_a_grid_has_ends_from_three_values_on(tmp_path: Path) -> None:
    for name, rates in (("two", (0.1, 0.2)), ("three", (0.1, 0.2, 0.3))):
        rows = [trial(0.7 + rate / 10, params={RATE: rate}) for rate in rates]
        found = search(tmp_path / name, *rows)
        assert bool(found) == (name == "three")


def test_a_loss_that_rises_while_the_accuracy_does_not_fall(tmp_path: Path) -> None:
    folder = sweeps.write(tmp_path / "a", [trial(0.9, epochs=8)])
    losses = [0.5, 0.4, 0.35, 0.34, 0.36, 0.4, 0.43, 0.45]
    for last, said in ((0.92, True), (0.80, False)):
        accuracies = [0.8, 0.85, 0.88, 0.9, 0.9, 0.91, 0.91, last]
        record.write_history(
            folder / "0",
            [
                Epoch(n + 1, 0.1, 0, 0, x, y, 1.0)
                for n, (x, y) in enumerate(zip(losses, accuracies))
            ],
        )
        found = advice(folder, runs_of(folder))
        assert any("risen from 0.340 after epoch 4 to 0.450" in line for line in found) == said


def test_a_lead_within_noise_is_to_be_confirmed(tmp_path: Path) -> None:
    for name, lead, said in (("small", 0.001, True), ("large", 0.05, False)):
        rows = [trial(0.85, epochs=8), trial(0.85 + lead, epochs=8)]
        folder = sweeps.write(tmp_path / name, rows)
        for run in (0, 1):
            wave = [0.85 + lead * run + 0.002 * (-1) ** n for n in range(8)]
            record.write_history(
                folder / str(run), [Epoch(n + 1, 0.1, 0, 0, 1, v, 1.0) for n, v in enumerate(wave)]
            )
        found = [
            line for line in advice(folder, runs_of(folder)) if "lead over the baseline" in line
        ]
        assert bool(found) == said
        if said:
            assert "0.1 points" in found[0] and f"fmnist_sweep.confirm {folder}" in found[0]
            (folder / "confirm.json").write_text("{}")
            assert not any("lead" in line for line in advice(folder, runs_of(folder)))


def test_what_took_the_time(tmp_path: Path) -> None:
    rows = [
        trial(
            0.8, params={BATCH: 16 if n < 6 else 64, RATE: 0.01 * n}, seconds=8.0 if n < 6 else 2.0
        )
        for n in range(14)
    ]
    found = search(tmp_path / "a", *rows)
    assert "75% of the training time went to trials with data.batch_size=16." in found


def test_where_it_is_shown(tmp_path: Path, report: Command) -> None:
    rows = [trial(0.7 + rate / 10, params={RATE: rate}) for rate in (0.1, 0.2, 0.3)]
    folder = sweeps.write(tmp_path / "a", rows)
    (line,) = page.content(folder, runs_of(folder), {})["advice"]
    outcome = report(str(folder))
    assert f"- {line}\n" in outcome.out and "search above 0.3 too" in line


def test_several_objectives_get_none(tmp_path: Path) -> None:
    rows = [
        trial(0.7 + n / 10, params={RATE: n / 10}, values={"seconds": 1.0 + n}) for n in range(3)
    ]
    folder = sweeps.write(
        tmp_path / "a", rows, objective=["val_accuracy", "seconds"],
        direction=["maximize", "minimize"],
    )  # fmt: skip
    assert advice(folder, runs_of(folder)) == []
