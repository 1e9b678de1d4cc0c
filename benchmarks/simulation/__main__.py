"""Play search strategies against recorded learning curves, and compare them by the clock.

    python -m benchmarks.simulation --processes 2
    python -m benchmarks.simulation --strategies median/stock-epochs,asha/tpe --seeds 50

The curves are those of `benchmarks/curves`. The regret at a time is the best validation accuracy of
the table minus the best that the search has seen, in any epoch of any trial.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import optuna

from benchmarks.search_results import spread
from benchmarks.simulation import overtuning, strategies
from benchmarks.simulation import table as curves_table
from benchmarks.simulation.search import CLOCKS, Clock, Curves, Floats, Play, load, play
from fmnist_sweep.base import command
from fmnist_sweep.base.errors import ConfigError
from fmnist_sweep.base.figures import png, ticker
from fmnist_sweep.base.files import write_atomically
from fmnist_sweep.results.plot_style import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure

REPORTED = (25, 50, 100, 200, 500)  # seconds
NEAR = 0.002  # of the table's best: a regret that is small enough
RESAMPLES = 1000  # of the bootstrap
CHUNK = 10  # seeds that a process plays before it takes others
DEFAULT_CLOCK = Clock()
LEAST_SHOWN = 1e-4  # regret on the logarithmic axis: one validation image in 10,000
# Up to seven strategies of the picture, if they have been played.
SHOWN = (
    "full/random", "full/stock-epochs", "median/stock-epochs", "hyperband/random", "asha/random",
    "asha/tpe", "freeze-thaw/random",
)  # fmt: skip
COLORS = (GREY, "black", BLUE, ORANGE, GREEN, VERMILION, "#CC79A7")


def measure(
    table_path: Path,
    seeds: int,
    horizon: float,
    names: Sequence[str] = strategies.DEFAULT,
    processes: int = 1,
    seconds: str = "stacks",
    clock: Clock = DEFAULT_CLOCK,
) -> dict[str, Any]:
    """Play strategies against a table of curves.

    Args:
        table_path: what `curves_table.build` has written.
        seeds: the number of searches of each strategy.
        horizon: seconds of each search.
        names: strategies.
        processes: that play at once.
        seconds: those of an epoch, in stacks or alone.
        clock: what takes time besides epochs.

    Returns:
        What was played and, by strategy: medians over seeds of the regret with 95 % bootstrap
        intervals, seconds until the regret is at most `NEAR`, trials and epochs; JSON data.

    Raises:
        ConfigError: there is no such strategy, or the seconds alone have not been measured.
    """
    for name in names:
        strategies.check(name)
    alone = curves_table.read_alone(table_path.with_name(curves_table.ALONE.name))
    if seconds == "alone" and not alone:
        raise ConfigError("no seconds alone; run: python -m benchmarks.simulation.table alone")
    curves = load(table_path, seconds, alone)
    grid = np.geomspace(min(2 * clock.start + 1, horizon), horizon, 60)
    times = np.unique([*grid, *(second for second in REPORTED if second <= horizon)])
    results = {}
    with joblib.Parallel(n_jobs=processes) as parallel:
        for name in names:
            parts: list[tuple[list[Play], float]] = parallel(
                joblib.delayed(_play)(
                    name, curves, range(first, min(first + CHUNK, seeds)), horizon, clock
                )
                for first in range(0, seeds, CHUNK)
            )
            plays = [one for part, _ in parts for one in part]
            results[name] = {
                **_figures(plays, times, curves.best()),
                "computing_s": sum(took for _, took in parts),
            }
            print(f"{name}: {results[name]['computing_s']:.0f} s of computing", flush=True)
    return {
        "curves": {
            "configurations": len(curves.params),
            "curves": len(curves.accuracy),
            "epochs": curves.epochs,
            "best": curves.best(),
            "epoch_s": [float(curves.seconds.min()), float(curves.seconds.max())],
        },
        "seconds": seconds,
        "seeds": seeds,
        "horizon": horizon,
        "clock": asdict(clock),
        "times": times.tolist(),
        "strategies": results,
        "overtuned": overtuning.measure(curves),
    }


def _play(
    name: str, curves: Curves, seeds: Sequence[int], horizon: float, clock: Clock
) -> tuple[list[Play], float]:
    """Return searches of a strategy by seed, and the processor's seconds that they took."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    began = time.process_time()
    plays = [play(strategies.make(name, curves, seed, clock), horizon) for seed in seeds]
    return plays, time.process_time() - began


def _figures(plays: Sequence[Play], times: Floats, best: float) -> dict[str, Any]:
    """Return a strategy's results.

    Args:
        plays: its searches.
        times: when to take the regret, in seconds.
        best: the table's best accuracy.
    """
    # With several seeds, the table's best is a mean, which a single curve can exceed.
    regrets = np.maximum(best - np.stack([one.best_at(times) for one in plays]), 0.0)
    draws = np.random.default_rng(0).integers(len(plays), size=(RESAMPLES, len(plays)))
    resampled = np.stack([np.median(regrets[draw], axis=0) for draw in draws])
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    near = float(np.median([one.seconds_to(best - NEAR) for one in plays]))
    return {
        "median": np.median(regrets, axis=0).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "near_s": near if np.isfinite(near) else None,
        "trials": float(np.median([one.trials for one in plays])),
        "epochs": float(np.median([one.epochs for one in plays])),
        "ran_out": float(np.mean([one.ran_out for one in plays])),
    }


def table(results: dict[str, Any]) -> str:
    """Return the regrets in percentage points as Markdown, the best strategy at the end first."""
    times = results["times"]
    places = [times.index(second) for second in REPORTED if second in times]
    columns = [f"{times[place]:.0f} s" for place in places]
    curves = results["curves"]
    place = "alone" if results["seconds"] == "alone" else "in the sweep"
    lines = [
        f"Regret in percentage points, median of {results['seeds']} searches with a 95 % interval. "
        f"{curves['configurations']} configurations, the best with a validation accuracy of "
        f"{curves['best']:.4f}. {results['clock']['workers']} workers; an epoch takes "
        f"{curves['epoch_s'][0]:.2f} to {curves['epoch_s'][1]:.2f} s, as {place}.",
        "",
        "| strategy | " + " | ".join(columns) + f" | s to {100 * NEAR:.1f} | trials | epochs |",
        "|---" * (len(columns) + 4) + "|",
    ]
    ranked = sorted(results["strategies"].items(), key=lambda item: _rank(item[1], places))
    for name, one in ranked:
        cells = [
            f"{100 * one['median'][place]:.2f} "
            f"({100 * one['low'][place]:.2f}-{100 * one['high'][place]:.2f})"
            for place in places
        ]
        near = f"> {results['horizon']:.0f}" if one["near_s"] is None else f"{one['near_s']:.0f}"
        out = f", table used up in {one['ran_out']:.0%}" if one["ran_out"] else ""
        cells += [near, f"{one['trials']:.0f}{out}", f"{one['epochs']:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", overtuning.table(results["overtuned"])])


def _rank(one: dict[str, Any], places: Sequence[int]) -> tuple[float, ...]:
    return tuple(one["median"][place] for place in reversed(places))


def picture(results: dict[str, Any]) -> bytes:
    """Draw regret against seconds, both logarithmic, as PNG; bands are the intervals."""
    played = results["strategies"]
    names = [name for name in SHOWN if name in played] or list(played)[: len(COLORS)]
    figure, axes = new_figure(8.4, 5.2)
    times = np.array(results["times"])
    ends = {}
    for name, color in zip(names, COLORS):
        middle, low, high = (
            np.maximum(played[name][key], LEAST_SHOWN) * 100 for key in ("median", "low", "high")
        )
        axes.fill_between(times, low, high, color=color, alpha=0.2, linewidth=0, step="post")
        axes.step(times, middle, color=color, linewidth=1.6, where="post")
        ends[name] = (float(middle[-1]), color)
    axes.set(xscale="log", yscale="log", xlim=(times[0], times[-1]))
    axes.set(xlabel="seconds", ylabel="regret, percentage points of validation accuracy")
    shown = [100 * value for name in names for value in played[name]["median"]]
    axes.set_ylim(0.8 * max(min(shown), 100 * LEAST_SHOWN), min(1.2 * max(shown), 10))
    axes.set_xticks([second for second in (10, *REPORTED) if second <= times[-1]])
    low, high = axes.get_ylim()
    steps = (digit * 10.0**power for power in range(-2, 2) for digit in (1, 2, 5))
    axes.set_yticks([step for step in steps if low <= step <= high])
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    low, high = np.log(axes.get_ylim())
    heights = [(np.log(end) - low) / (high - low) for end, _ in ends.values()]
    for (name, (end, color)), place in zip(ends.items(), spread(heights, 0.045)):
        axes.annotate(
            name, (times[-1], end), (1.01, place), textcoords=axes.transAxes, color=color,
            va="center", fontsize=9, annotation_clip=False,
        )  # fmt: skip
    return png(figure)


def main() -> None:
    """Run the command; a user's mistake is one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulation",
        description="Play search strategies against recorded learning curves.",
    )
    parser.add_argument("--table", type=Path, default=curves_table.CURVES, help="the curves")
    parser.add_argument("--seeds", type=int, default=200, help="searches of each (default: 200)")
    parser.add_argument("--horizon", type=float, default=600.0, help="seconds (default: 600)")
    parser.add_argument("--strategies", help="names, separated by commas (default: the usual ones)")
    parser.add_argument("--processes", type=int, default=1, help="that play at once (default: 1)")
    parser.add_argument("--seconds", choices=CLOCKS, default="stacks", help="of an epoch")
    parser.add_argument("--compile", type=float, default=0.0, help="seconds, once for each kind")
    parser.add_argument("--out", type=Path, default=Path("outputs/simulator.json"))
    options = parser.parse_args()
    command.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if min(options.seeds, options.horizon, options.processes) < 1:
        raise ConfigError("--seeds, --horizon and --processes: must be at least 1")
    names = options.strategies.split(",") if options.strategies else strategies.DEFAULT
    results = measure(
        options.table, options.seeds, options.horizon, names, options.processes, options.seconds,
        Clock(compile=options.compile),
    )  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    print("\n" + table(results))
    write_atomically(options.out, json.dumps(results, indent=2) + "\n")
    write_atomically(options.out.with_suffix(".png"), picture(results))
    print(f"\nSaved to {options.out} and {options.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
