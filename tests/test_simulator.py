"""Search strategies against tables of learning curves made by hand."""

import json
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from scipy import stats

from benchmarks.simulation import __main__ as simulator
from benchmarks.simulation import overtuning, strategies
from benchmarks.simulation import table as curves_table
from benchmarks.simulation.freeze_thaw import FreezeThaw
from benchmarks.simulation.samplers import nearest
from benchmarks.simulation.schedulers import Asha, Full, KeepBest
from benchmarks.simulation.search import Clock, Curves, Sampler, Scheduler, Search, load, play
from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.sweep import extrapolation
from fmnist_sweep.sweep.extrapolation import continue_curves

NO_DELAYS = Clock(workers=1, start=0, begin=0, resume=0)


class InOrder(Sampler):
    """Takes the table's configurations from the first to the last."""

    def __init__(self, configurations: int, epochs: int) -> None:
        self.left = [(config, epochs) for config in range(configurations)]

    def next(self, trials):
        return self.left.pop(0) if self.left else None


def curves(accuracy, seconds=None, seeds=1) -> Curves:
    """A table of these curves; each configuration has `seeds` of them in a row."""
    accuracy = np.array(accuracy, float)
    count = len(accuracy) // seeds
    lr = np.geomspace(1e-4, 1e-2, count)
    return Curves(
        params=np.stack([lr, np.full(count, 32.0), np.full(count, 128.0)], 1),
        seconds=np.array(seconds or [1.0] * count),
        accuracy=accuracy,
        config=np.repeat(np.arange(count), seeds),
        seed=np.tile(np.arange(seeds), count),
    )


def search(table: Curves, clock: Clock = NO_DELAYS) -> Search:
    sampler = InOrder(len(table.params), table.epochs)
    return Search(table, sampler, np.random.default_rng(0), clock)


def trained(scheduler: Scheduler) -> list[int]:
    """Epochs of each trial."""
    return [trial.epochs for trial in scheduler.search.trials]


FOUR = [[0.5, 0.6, 0.55], [0.4, 0.7, 0.8], [0.3, 0.3, 0.3], [0.6, 0.7, 0.9]]


def test_the_clock_of_two_workers_by_hand():
    table = curves(FOUR, seconds=[2, 3, 1, 2])
    clock = Clock(workers=2, start=4, begin=0.5, resume=10, compile=1)
    result = play(Full(search(table, clock)), horizon=100)
    # The first worker compiles, then trains trial 0 until 7.5, 9.5, 11.5, and trial 2 until 13, 14,
    # 15. The second one trains trial 1 until 7.5, 10.5, 13.5, and trial 3 until 16, 18, 20.
    assert result.times == [7.5, 9.5, 10.5, 13.5, 20.0]
    assert result.bests == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert (result.trials, result.epochs, result.ran_out) == (4, 12, True)
    assert list(result.best_at(np.array([7.4, 7.5, 13.6]))) == [0.1, 0.5, 0.8]
    assert result.seconds_to(0.75) == 13.5 and result.seconds_to(0.95) == float("inf")


def test_nothing_counts_after_the_horizon():
    result = play(Full(search(curves(FOUR))), horizon=4.5)
    assert result.times == [1.0, 2.0] and result.epochs == 4


def test_the_best_after_one_epoch_trains_all_epochs():
    scheduler = KeepBest(search(curves(FOUR)), trials=4, keep=1)
    result = play(scheduler, horizon=6)
    assert trained(scheduler) == [1, 1, 1, 3]
    assert result.times == [1.0, 4.0, 5.0, 6.0] and result.bests == [0.5, 0.6, 0.7, 0.9]


def test_workers_wait_for_the_round():
    scheduler = KeepBest(search(curves(FOUR, [1, 5, 1, 1]), Clock(2, 0, 0, 0)), trials=4, keep=1)
    # Trial 1 ends its first epoch at 5; only then is it known that trial 3 is the best.
    assert play(scheduler, horizon=7).times == [1.0, 3.0, 6.0, 7.0]


def late_bloomers() -> Curves:
    """The first curve is second among the first three, and ends best."""
    firsts = [0.5, 0.6, 0.4, 0.1, 0.1, 0.1]
    return curves([[first] * 3 + [0.5 if n else 0.9] * 6 for n, first in enumerate(firsts)])


def test_a_paused_trial_is_promoted_when_others_come_in_worse():
    scheduler = Asha(search(late_bloomers()))
    assert scheduler.rungs == [1, 3]
    # An epoch each of trials 0, 1 and 2, then two more of the best of these; trial 3 has begun.
    play(scheduler, horizon=5)
    assert trained(scheduler) == [1, 3, 1, 0]
    play(scheduler := Asha(search(late_bloomers())), horizon=10)
    # With six values at the first rung, its best two are promoted: trial 0 too.
    assert trained(scheduler) == [3, 3, 1, 1, 1, 1]


def test_once_the_table_is_used_up_the_best_paused_trials_go_on():
    scheduler = Asha(search(late_bloomers()))
    result = play(scheduler, horizon=1000)
    assert trained(scheduler) == [9] * 6 and max(result.bests) == 0.9


def test_a_promotion_by_gain_counts_its_seconds():
    table = curves([[0.5] * 9, [0.49] * 9, [0.1] * 9], seconds=[9, 1, 1])
    chosen = []
    for by_gain in (False, True):
        scheduler = Asha(search(table), by_gain=by_gain)
        for trial in (scheduler.search.begin() for _ in range(3)):
            trial.epochs = 1
            scheduler.paused[0].append(trial)
        scheduler.values[0] = [0.5, 0.49, *[0.1] * 4]
        chosen.append(scheduler.next(None)[0].config)
    assert chosen == [0, 1]


def test_freeze_thaw_leaves_the_hopeless():
    numbers = np.arange(1, 31)
    limits = [0.89, 0.7, 0.7, 0.7, 0.7]
    table = curves([limit - 0.05 / numbers for limit in limits])
    scheduler = FreezeThaw(search(table), interval=2, first=4)
    result = play(scheduler, horizon=60)
    epochs = trained(scheduler)
    assert epochs[0] == 30 and sum(epochs[1:]) <= 30
    assert max(result.bests) == pytest.approx(0.89 - 0.05 / 30)


def test_curves_continue_as_power_laws():
    numbers = np.arange(1, 51)
    laws = np.stack([0.88 - 0.06 / numbers, 0.9 - 0.06 / numbers**0.5, 0.87 - 0.1 / numbers])
    noisy = laws + np.random.default_rng(0).normal(0, 0.001, laws.shape)
    spread = []
    for known in (3, 8, 25):
        means, deviations, noise = continue_curves([noisy[0, :known], *noisy[1:, :25]], 50)
        assert (means[0, :known] == pytest.approx(noisy[0, :known])) and not deviations[0, 0]
        assert abs(means[0, 49] - laws[0, 49]) < 3 * deviations[0, 49]
        spread.append(deviations[0, 49])
        assert 0.0005 < noise < 0.002
    assert spread[0] > spread[1] > spread[2] and spread[2] < 0.003


def conditioned(curve, until, noise):
    """The prediction for later epochs, by conditioning the joint normal distribution."""
    numbers, known = np.arange(1, until + 1), len(curve)
    means, variances, evidence = [], [], []
    for exponent in extrapolation.EXPONENTS:
        terms = np.stack([np.ones(until), -(1.0 / numbers**exponent)], axis=1)
        center = terms @ np.array([extrapolation.LIMIT[0], extrapolation.DISTANCE[0]])
        spread = np.diag([extrapolation.LIMIT[1], extrapolation.DISTANCE[1]]) ** 2
        joint = terms @ spread @ terms.T + noise**2 * np.eye(until)
        seen = stats.multivariate_normal(center[:known], joint[:known, :known])
        gain = joint[known:, :known] @ np.linalg.inv(joint[:known, :known])
        means.append(center[known:] + gain @ (curve - center[:known]))
        variances.append(np.diag(joint[known:, known:] - gain @ joint[:known, known:]))
        evidence.append(seen.logpdf(curve))
    weights = np.exp(np.array(evidence) - max(evidence))[:, None]
    weights /= weights.sum()
    mean = (weights * means).sum(0)
    return mean, np.sqrt((weights * (variances + (means - mean) ** 2)).sum(0))


def test_predictions_are_those_of_the_joint_distribution():
    rng = np.random.default_rng(1)
    curves = [0.8 - 0.3 / np.arange(1, n + 1) + rng.normal(0, 0.01, n) for n in (1, 2, 5, 12)]
    means, deviations, noise = continue_curves(curves, 20)
    best = np.array([curve.max() for curve in curves])
    level, unit = np.median(best), np.subtract(*np.quantile(best, [0.75, 0.25])) / 1.35
    for row, curve in enumerate(curves):
        mean, deviation = conditioned((curve - level) / unit, 20, noise / unit)
        assert means[row, len(curve) :] == pytest.approx(level + unit * mean)
        assert deviations[row, len(curve) :] == pytest.approx(unit * deviation)
    # Another unit of the values changes nothing else.
    other, _, _ = continue_curves([100 * curve - 7 for curve in curves], 20)
    assert other == pytest.approx(100 * means - 7)


@pytest.fixture(scope="module")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty configurations, ten of them with two seeds, as sweeps leave them."""
    folder = tmp_path_factory.mktemp("sweeps")
    rng = np.random.default_rng(0)
    for trial in range(40):
        params = {
            "optimizer.lr": float(10 ** rng.uniform(-4, -2)),
            "data.batch_size": int(rng.choice([16, 32, 64, 128])),
            "model.width": 64 * int(rng.integers(1, 9)),
        }
        for seed in range(2 if trial < 10 else 1):
            run = folder / f"curves{seed}" / str(trial)
            run.mkdir(parents=True)
            write_run(run, params, seed, rng)
    (folder / "curves0" / "40").mkdir()  # has begun
    target = folder / "mlp.csv.gz"
    rows = [(16, 64, 2.0, "a"), (32, 64, 1.0, "a")]
    alone = pd.DataFrame(rows, columns=["batch_size", "width", "seconds", "processor"])
    alone.to_csv(folder / "alone.csv", index=False)
    text = curves_table.build(
        [folder / "curves0", folder / "curves1"], folder / "alone.csv", target
    )
    assert "50 curves of 20 epochs" in text and "40 configurations, 10 of them" in text
    assert "seed 0: 40, seed 1: 10" in text and text in (folder / "README.md").read_text()
    return target


def test_further_curves_join_a_table(table_path, tmp_path):
    folder, target = table_path.parent, tmp_path / "mlp.csv.gz"
    for sweep, add in (("curves1", False), ("curves0", True), ("curves0", True)):
        text = curves_table.build([folder / sweep], target=target, add=add)
    assert "50 curves of 20 epochs" in text and "trained on a with 2 cores" in text
    columns = ["lr", "batch_size", "width", "seed", "epoch"]
    whole, joined = (
        curves_table.read(path).sort_values(columns, ignore_index=True)
        for path in (table_path, target)
    )
    pd.testing.assert_frame_equal(whole, joined)


def write_run(run: Path, params: dict, seed: int, rng: np.random.Generator) -> None:
    numbers = np.arange(1, 21)
    limit = 0.89 - 0.01 * (np.log10(params["optimizer.lr"]) + 3) ** 2
    history = pd.DataFrame({"epoch": numbers, "lr": params["optimizer.lr"]})
    history["train_loss"] = history["train_accuracy"] = history["val_loss"] = 0.5
    history["val_accuracy"] = (limit - 0.05 / numbers + rng.normal(0, 0.002, 20)).round(4)
    history["seconds"] = 32 / params["data.batch_size"]
    history.to_csv(run / "history.csv", index=False)
    summary = {"state": "COMPLETE", "seed": seed, "val_accuracy": 0.8}
    (run / "summary.json").write_text(json.dumps(summary))
    trial = {"params": params, "default": False}
    trial |= {"objective": ["val_accuracy"], "direction": ["maximize"]}
    (run / "trial.json").write_text(json.dumps(trial))
    (run / "environment.json").write_text(json.dumps({"processor": "a", "cores": 2}))


def test_a_table_has_the_curves_of_the_sweeps(table_path):
    table = load(table_path, "stacks")
    assert table.accuracy.shape == (50, 20) and len(table.params) == 40
    assert list(table.seconds) == [32 / batch for batch in table.params[:, 1]]
    run = table_path.parent / "curves1" / "3"
    lr = json.loads((run / "trial.json").read_text())["params"]["optimizer.lr"]
    config = int(np.abs(table.params[:, 0] - lr).argmin())
    [curve] = np.flatnonzero((table.config == config) & (table.seed == 1))
    assert list(table.accuracy[curve]) == list(pd.read_csv(run / "history.csv").val_accuracy)


def test_kinds_that_were_not_timed_alone_take_the_usual_ratio(table_path):
    table, alone = load(table_path, "stacks"), {(16, 64): 4.0, (32, 64): 2.0, (1, 1): 9.0}
    assert np.allclose(load(table_path, "alone", alone).seconds, 2 * table.seconds)


def test_the_nearest_configuration_keeps_batch_size_and_width():
    params = np.array([[1e-3, 64, 128], [1e-2, 32, 128], [1e-3, 32, 512]], float)
    assert nearest(params, 1e-3, 32, 128) == 1


@pytest.mark.parametrize(
    "name", [f"{scheduler}/random" for scheduler in strategies.SCHEDULERS]
    + [f"asha/{sampler}" for sampler in strategies.SAMPLERS]
)  # fmt: skip
def test_the_same_seed_gives_the_same_search(name, table_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = load(table_path, "stacks")
    one, again, other = (
        play(strategies.make(name, table, seed, Clock()), horizon=20) for seed in (1, 1, 2)
    )
    assert one == again != other


def test_tpe_learns_the_parameters_that_were_trained(table_path):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = load(table_path, "stacks")
    scheduler = strategies.make("asha/tpe", table, 0, Clock())
    play(scheduler, horizon=100)
    sampler, trials = scheduler.search.sampler, scheduler.search.trials
    assert len({trial.config for trial in trials}) == len(trials) > 10
    for trial, entry in zip(trials, sampler.storage.entries):
        assert [entry.params[name] for name in ("lr", "batch_size", "width")] == list(
            table.params[trial.config]
        )


def test_a_command_measures_and_draws(table_path):
    results = simulator.measure(table_path, 3, 60, ["full/random", "asha/random"])
    assert results == json.loads(json.dumps(results))
    text = simulator.table(results)
    assert "| asha/random |" in text and "50 s" in text and "500 s" not in text
    assert simulator.picture(results).startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="asha/grid: no such strategy"):
        simulator.measure(table_path, 1, 60, ["asha/grid"])


def test_winners_are_judged_on_other_seeds():
    # By configuration, seeds 0 and 1. The second one, with a learning rate of 1e-3, is the default.
    table = curves([[0.1], [0.8], [0.5], [0.6], [0.9], [0.2]], seeds=2)
    found = overtuning.measure(table)
    assert found["configurations"] == 3 and found["nearest_to_default"] == [1e-3, 32, 128]
    # The third one wins its two of three pairs, and is worse on seed 1; else the default wins.
    assert found["trials"]["2"]["worse"] == pytest.approx(2 / 3, abs=0.05)
    assert "skipped" in overtuning.measure(curves(FOUR))
