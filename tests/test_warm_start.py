"""A search that learns from the results of earlier sweeps."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import Command

RATE = "optimizer.lr=tag(log,interval(1e-5,1e-1))"
EARLIER = ("-m", "name=earlier", RATE, "data.batch_size=16,32", "hydra/sweeper/sampler=random")
LATER = ("-m", RATE, "data.batch_size=16,32,64", "hydra.sweeper.baseline=false")
WARM = "hydra.sweeper.warm_start=[multirun/earlier]"


def table(name: str) -> pd.DataFrame:
    return pd.read_csv(f"multirun/{name}/sweep.csv")


def far_from_best(name: str) -> float:
    """The median distance of a sweep's learning rates from the best, in powers of ten."""
    return float(np.median(abs(np.log10(table(name)["optimizer.lr"]) + 3)))


@pytest.fixture
def earlier(tiny: Command) -> None:
    assert tiny(*EARLIER, "hydra.sweeper.n_trials=30").code == 0


@pytest.mark.usefixtures("earlier")
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_learns_from_an_earlier_sweep(sampler: str, tiny: Command) -> None:
    few = (f"hydra/sweeper/sampler={sampler}", "hydra.sweeper.n_trials=6")
    assert tiny(*LATER, *few, "name=cold").code == 0
    for number, source in enumerate(("multirun/earlier", "multirun/earlier/sweep.csv")):
        warm = f"hydra.sweeper.warm_start=[{source}]"
        outcome = tiny(*LATER, *few, f"name=warm{number}", warm)
        assert outcome.code == 0, outcome.err
        assert f"Warm start from {source}: 30 of 30 results\n" in outcome.err
        # Earlier results are no trials of this sweep.
        assert table(f"warm{number}").trial.tolist() == list(range(6))
        assert far_from_best(f"warm{number}") < min(0.5, far_from_best("cold"))
    assert table("warm0")["optimizer.lr"].tolist() == table("warm1")["optimizer.lr"].tolist()


@pytest.mark.usefixtures("earlier")
def test_a_warm_sweep_resumes(tiny: Command) -> None:
    for trials in (3, 6):
        assert tiny(*LATER, WARM, "name=warm", f"hydra.sweeper.n_trials={trials}").code == 0
        assert len(table("warm")) == trials
    assert far_from_best("warm") < 0.5


@pytest.mark.usefixtures("earlier")
def test_what_does_not_fit_is_named(tiny: Command) -> None:
    rates = table("earlier")["optimizer.lr"]
    inside = int(((rates >= 1e-4) & (rates <= 1e-2)).sum())
    outcome = tiny(
        "-m", "name=warm", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "trainer.epochs=3",
        "data.batch_size=16,32", "hydra.sweeper.n_trials=1", WARM,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert (
        f"Warm start from multirun/earlier: {inside} of 30 results; "
        f"left out by optimizer.lr ({30 - inside}); run with other trainer.epochs\n"
    ) in outcome.err


MISTAKES: dict[tuple[str, ...], str] = {
    ("hydra.sweeper.warm_start=[multirun/none]",): "multirun/none: no such file or folder",
    (WARM, "name=earlier"): "multirun/earlier: is this sweep itself",
    (WARM, "hydra.sweeper.objective=val_loss"): "was to maximize val_accuracy, this sweep is to",
    (WARM, "data.val_size=5000"): "other data: data.val_size is 10000 there and 5000 here",
    (WARM, "hydra/sweeper/sampler=cmaes"): "informs hydra/sweeper/sampler=tpe and gp, not CmaEs",
    (WARM, "hydra.sweeper.objective=[val_loss,seconds]"): "needs a single objective",
    (WARM, "hydra.sweeper.design=one_at_a_time"): "a grid tries all of its points",
    ("hydra.sweeper.warm_start=multirun/earlier",): "hydra.sweeper.warm_start=multirun/earlier",
}


@pytest.mark.usefixtures("earlier")
def test_mistakes_are_one_line(tiny: Command) -> None:
    for mistake, message in MISTAKES.items():
        named = () if "name=earlier" in mistake else ("name=warm",)
        space = EARLIER[2:4] if "name=earlier" in mistake else LATER[1:3]
        if "hydra.sweeper.design=one_at_a_time" in mistake:
            space = ("optimizer.lr=0.001,0.2",)
        outcome = tiny("-m", *space, *named, *mistake)
        assert outcome.code == 1 and message in outcome.err, outcome.err
        assert outcome.err.count("\n") == 1 and not Path("multirun/warm").exists()
