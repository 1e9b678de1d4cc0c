"""The statistics of a comparison, by SciPy; nothing here knows of sweeps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 9999
FEWEST_PAIRS = 5  # below that neither an interval nor a test says anything

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How much better B is than A, in the objective's units; positive is better.

    low, high: the interval; None where there are too few values for one.
    p: two-sided; None where no test was made.
    """

    n: int
    value: float
    low: float | None
    high: float | None
    p: float | None = None

    @property
    def within_noise(self) -> bool:
        """Whether the interval leaves open which one is better."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


@dataclass(frozen=True)
class Curve:
    """n, and for each the expected best of n trials with its interval; all of one length."""

    n: NDArray[np.int64]
    value: Floats
    low: Floats
    high: Floats


def paired(differences: Sequence[float], confidence: float) -> Difference:
    """The mean of paired differences with a bootstrap interval; the Wilcoxon signed-rank test."""
    # Sorted, since the resampling, which has a fixed seed, depends on the order.
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
    """The difference b - a of two means with Welch's t interval and test.

    Args:
        a, b: mean, sample standard deviation and number of values, at least 2.
    """
    (mean_a, std_a, n_a), (mean_b, std_b, n_b) = a, b
    parts = std_a**2 / n_a, std_b**2 / n_b
    error = math.sqrt(sum(parts))
    value = mean_b - mean_a
    if error == 0:
        return Difference(min(n_a, n_b), value, value, value, 1.0 if value == 0 else 0.0)
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (n_a - 1) + parts[1] ** 2 / (n_b - 1))
    reach = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p = stats.ttest_ind_from_stats(mean_b, std_b, n_b, mean_a, std_a, n_a, equal_var=False).pvalue
    return Difference(min(n_a, n_b), value, value - reach, value + reach, float(p))


def expected_best(ordered: Floats, n: int) -> Floats:
    """The expected greatest of `n` values drawn with replacement.

    Args:
        ordered: [..., m], ascending along the last axis.

    Returns:
        [...].
    """
    count = ordered.shape[-1]
    # The chance that the greatest drawn is the i-th, or less: (i / m) ** n.
    chances = (np.arange(count + 1) / count) ** n
    return np.asarray(ordered @ np.diff(chances))


def best_of_n(a: Sequence[float], b: Sequence[float], confidence: float) -> Difference:
    """The difference of the expected best of n trials, n being the smaller sweep's number.

    The interval is a bootstrap over the trials, as if each had been drawn independently: a
    search's later trials are not, so that it is a rough one.
    """
    one, other = np.sort(np.asarray(a, dtype=float)), np.sort(np.asarray(b, dtype=float))
    n = min(len(one), len(other))
    value = float(expected_best(other, n) - expected_best(one, n))
    if n < 2:
        return Difference(n, value, None, None)
    random = np.random.default_rng(0)
    resampled = [_resampled_best(x, n, random) for x in (one, other)]
    low, high = _interval(resampled[1] - resampled[0], confidence)
    return Difference(n, value, low, high)


def best_of_n_curve(values: Sequence[float], confidence: float) -> Curve:
    """The expected best of n = 1 ... N with a bootstrap interval."""
    ordered = np.sort(np.asarray(values, dtype=float))
    sizes = np.unique(np.geomspace(1, len(ordered), 40).round().astype(int))
    random = np.random.default_rng(0)
    middle = np.array([float(expected_best(ordered, n)) for n in sizes])
    ends = [_interval(_resampled_best(ordered, n, random), confidence) for n in sizes]
    low, high = (np.array(end) for end in zip(*ends))
    return Curve(sizes, middle, low, high)


def _resampled_best(values: Floats, n: int, random: np.random.Generator) -> Floats:
    """The expected best of n in each of many resamples of the values."""
    # Positions in ascending order are values in ascending order.
    draws = np.sort(random.integers(0, len(values), (RESAMPLES // 3, len(values))), axis=1)
    return expected_best(values[draws], n)


def _interval(values: Floats, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
