"""The statistics of a comparison, by SciPy. This module knows numbers, not sweeps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 9999
FEWEST_PAIRS = 5  # with fewer pairs an interval and a test say nothing

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The advantage of B over A in the objective's unit; positive if B is better.

    n: the number of values.
    low, high: the interval; None with too few values.
    p: the two-sided p-value; None without a test.
    """

    n: int
    value: float
    low: float | None
    high: float | None
    p: float | None = None

    @property
    def within_noise(self) -> bool:
        """True if the interval includes zero or is unknown."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


@dataclass(frozen=True)
class Curve:
    """The expected best of n trials with its interval, for several n; arrays of equal length."""

    n: NDArray[np.int64]
    value: Floats
    low: Floats
    high: Floats


def paired(differences: Sequence[float], confidence: float) -> Difference:
    """Return the mean of paired differences, a bootstrap interval and Wilcoxon's signed-rank test.

    Args:
        differences: B minus A for each pair, at least one.
        confidence: the level of the interval, in (0, 1).
    """
    # The resampling has a fixed seed; sorting makes it independent of the order of the pairs.
    values = np.sort(np.asarray(differences, dtype=float))
    mean, n = float(values.mean()), len(values)
    if n < FEWEST_PAIRS:
        return Difference(n, mean, None, None)
    if np.ptp(values) == 0:
        low = high = mean
    else:
        found = stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    p = float(stats.wilcoxon(values).pvalue) if values.any() else 1.0
    return Difference(n, mean, low, high, p)


def welch(
    a: tuple[float, float, int], b: tuple[float, float, int], confidence: float
) -> Difference:
    """Return the difference b - a of two means with Welch's t interval and test.

    Args:
        a, b: mean, sample standard deviation and number of values, at least 2.
        confidence: the level of the interval, in (0, 1).
    """
    (mean_a, std_a, n_a), (mean_b, std_b, n_b) = a, b
    variances = std_a**2 / n_a, std_b**2 / n_b
    error = math.sqrt(sum(variances))
    value = mean_b - mean_a
    if error == 0:
        return Difference(min(n_a, n_b), value, value, value, 1.0 if value == 0 else 0.0)
    squares = variances[0] ** 2 / (n_a - 1) + variances[1] ** 2 / (n_b - 1)
    freedom = sum(variances) ** 2 / squares
    half_width = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p = stats.ttest_ind_from_stats(mean_b, std_b, n_b, mean_a, std_a, n_a, equal_var=False).pvalue
    return Difference(min(n_a, n_b), value, value - half_width, value + half_width, float(p))


def expected_best(ordered: Floats, n: int) -> Floats:
    """Return the expected greatest of `n` values drawn with replacement.

    Args:
        ordered: [..., m], ascending along the last axis.
        n: at least 1.

    Returns:
        [...].
    """
    count = ordered.shape[-1]
    # The greatest of the n values is at most the i-th of the m with probability (i / m) ** n.
    probabilities = (np.arange(count + 1) / count) ** n
    return np.asarray(ordered @ np.diff(probabilities))


def best_of_n(a: Sequence[float], b: Sequence[float], confidence: float) -> Difference:
    """Return the difference of the expected best of n trials; n is the size of the smaller sweep.

    The bootstrap interval treats trials as independent draws. It is rough, since later trials of a
    search depend on earlier ones.

    Args:
        a, b: the values of two sweeps' trials, at least one each; higher is better.
        confidence: the level of the interval, in (0, 1).
    """
    ordered = [np.sort(np.asarray(values, dtype=float)) for values in (a, b)]
    n = min(map(len, ordered))
    value = float(expected_best(ordered[1], n) - expected_best(ordered[0], n))
    if n < 2:
        return Difference(n, value, None, None)
    random = np.random.default_rng(0)
    resampled = [_resampled_best(x, n, random) for x in ordered]
    low, high = _interval(resampled[1] - resampled[0], confidence)
    return Difference(n, value, low, high)


def best_of_n_curve(values: Sequence[float], confidence: float) -> Curve:
    """Return the expected best of n trials with a bootstrap interval, for up to 40 n from 1 to all.

    Args:
        values: the trials' values, at least one; higher is better.
        confidence: the level of the interval, in (0, 1).
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    sizes = np.unique(np.geomspace(1, len(ordered), 40).round().astype(int))
    random = np.random.default_rng(0)
    middle = np.array([float(expected_best(ordered, n)) for n in sizes])
    ends = [_interval(_resampled_best(ordered, n, random), confidence) for n in sizes]
    low, high = (np.array(end) for end in zip(*ends))
    return Curve(sizes, middle, low, high)


def _resampled_best(values: Floats, n: int, random: np.random.Generator) -> Floats:
    """Return the expected best of n in each of many resamples of the ascending values."""
    # The values ascend, so sorting the indices sorts the resampled values.
    draws = np.sort(random.integers(0, len(values), (RESAMPLES // 3, len(values))), axis=1)
    return expected_best(values[draws], n)


def _interval(values: Floats, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
