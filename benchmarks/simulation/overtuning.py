"""How often a search's winner on one seed is worse than the defaults on other seeds."""

from typing import Any

import numpy as np

from benchmarks.simulation.samplers import nearest
from benchmarks.simulation.search import Curves

DEFAULT = (0.001, 32, 128)  # learning rate, batch size and width of the default configuration
SIZES = (2, 5, 10, 20, 40)  # trials of a search
DRAWS = 2000  # searches of each size


def measure(curves: Curves) -> dict[str, Any]:
    """Search at random among the configurations with several seeds, and judge on the other seeds.

    A search trains all epochs of its trials with the least seed, and takes the one with the best
    accuracy of any epoch. On the other seeds, a configuration counts by its mean best accuracy.

    Returns:
        The number of configurations, the one nearest to the default and, by the number of trials,
        the share of searches whose winner is worse than it and the winner's mean advantage in
        accuracy; or the reason why there is nothing to measure. JSON data.
    """
    bests = curves.accuracy.max(1)
    is_first = curves.seed == curves.seed.min()
    several = np.intersect1d(curves.config[is_first], curves.config[~is_first])
    if len(several) < min(SIZES):
        return {"skipped": "no configurations with several seeds"}
    first = np.array([bests[is_first & (curves.config == one)].mean() for one in several])
    others = np.array([bests[~is_first & (curves.config == one)].mean() for one in several])
    default = nearest(curves.params[several], *DEFAULT)
    rng = np.random.default_rng(0)
    results = {}
    for size in (size for size in SIZES if size <= len(several)):
        drawn = np.stack([rng.choice(len(several), size, replace=False) for _ in range(DRAWS)])
        winners = drawn[np.arange(DRAWS), first[drawn].argmax(1)]
        gain = others[winners] - others[default]
        results[str(size)] = {"worse": float((gain < 0).mean()), "gain": float(gain.mean())}
    return {
        "configurations": len(several),
        "nearest_to_default": curves.params[several][default].tolist(),
        "trials": results,
    }


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    if "skipped" in results:
        return f"Overtuned winners: not measured, {results['skipped']}."
    lr, batch, width = results["nearest_to_default"]
    lines = [
        f"Winners on one seed, judged on the others, beside the configuration nearest to the "
        f"default (lr {lr:.2g}, batch size {batch:.0f}, width {width:.0f}); "
        f"{results['configurations']} configurations with several seeds, {DRAWS:,} random searches "
        "of each size:",
        "",
        "| trials | winner is worse | mean gain, points |",
        "|---|---|---|",
    ]
    for size, one in results["trials"].items():
        lines.append(f"| {size} | {one['worse']:.0%} | {100 * one['gain']:+.2f} |")
    return "\n".join(lines)
