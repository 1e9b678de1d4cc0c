"""Continue learning curves by power laws, with an uncertainty."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

EXPONENTS = (0.25, 0.5, 1.0, 2.0)
# Before any epoch of a curve, in units of the spread of all curves' best values about their median:
# mean and standard deviation of the law's limit, and of the first epoch's distance from it.
LIMIT, DISTANCE = (2.0, 5.0), (5.0, 5.0)
# The noise in the same unit, as long as no curve has three epochs.
UNKNOWN_NOISE = 0.15


def continue_curves(curves: Sequence[Floats], until: int) -> tuple[Floats, Floats, float]:
    """Predict the values of curves from those of all of them.

    The law is a - b n^-c, where n is the epoch. For each exponent c, a and b are fitted by Bayesian
    least squares; the prediction mixes the exponents by how well they explain the curve.

    Args:
        curves: the values after each epoch, higher is better; each curve has at least one.
        until: the last epoch to predict; at least the length of the longest curve.

    Returns:
        Means and standard deviations [curves, until] of what an epoch will show, and the standard
        deviation of an epoch's value about its law. A known epoch has its value and 0.
    """
    level, unit = _level_and_unit(curves)
    scaled = [(curve - level) / unit for curve in curves]
    noise = _noise(scaled)
    known = np.array([len(curve) for curve in scaled])
    parts = [_fit(scaled, known, exponent, noise, until) for exponent in EXPONENTS]
    means = np.stack([part[0] for part in parts])  # [exponents, curves, until]
    variances = np.stack([part[1] for part in parts])
    evidence = np.stack([part[2] for part in parts])  # [exponents, curves]
    weights = np.exp(evidence - evidence.max(0))
    weights = (weights / weights.sum(0))[:, :, None]
    mean = (weights * means).sum(0)
    deviation = np.sqrt((weights * (variances + (means - mean) ** 2)).sum(0) + noise**2)
    for row, curve in enumerate(scaled):
        mean[row, : len(curve)] = curve
        deviation[row, : len(curve)] = 0.0
    return level + unit * mean, unit * deviation, unit * noise


def _level_and_unit(curves: Sequence[Floats]) -> tuple[float, float]:
    """Return the median of the curves' best values, and their spread as a standard deviation."""
    best = np.array([curve.max() for curve in curves])
    lower, level, upper = np.quantile(best, [0.25, 0.5, 0.75])
    # A single curve, or equal ones, spread as they rise.
    rise = float(np.median([curve.max() - curve.min() for curve in curves]))
    unit = (upper - lower) / 1.35 or rise or abs(level) or 1.0
    return float(level), float(unit)


def _noise(scaled: Sequence[Floats]) -> float:
    """Return the noise of an epoch, from second differences, to which a smooth law adds little."""
    differences = [np.diff(curve, 2) for curve in scaled if len(curve) > 2]
    if not differences:
        return UNKNOWN_NOISE
    size = float(np.median(np.abs(np.concatenate(differences))))
    return max(1.48 * size / math.sqrt(6), UNKNOWN_NOISE / 10)


def _fit(
    scaled: Sequence[Floats],
    known: npt.NDArray[np.int64],
    exponent: float,
    noise: float,
    until: int,
) -> tuple[Floats, Floats, Floats]:
    """Fit laws with a given exponent to all curves.

    Returns:
        Means and variances of the law [curves, until]; the logarithm of the curves' likelihood, up
        to what does not depend on the exponent [curves].
    """
    terms = np.stack([np.ones(until), -(np.arange(1.0, until + 1) ** -exponent)])  # [2, until]
    prior_mean = np.array([LIMIT[0], DISTANCE[0]])
    prior_precision = np.diag([LIMIT[1] ** -2.0, DISTANCE[1] ** -2.0])
    # Sums over a curve's epochs, from sums over the first n epochs for all n.
    products = np.cumsum(terms[:, None] * terms[None], axis=2)[:, :, known - 1]  # [2, 2, curves]
    moments = np.stack([terms[:, : len(curve)] @ curve for curve in scaled])  # [curves, 2]
    squares = np.array([curve @ curve for curve in scaled])
    precision = prior_precision + products.transpose(2, 0, 1) / noise**2  # [curves, 2, 2]
    covariance = np.linalg.inv(precision)
    shift = prior_precision @ prior_mean + moments / noise**2
    fitted = np.einsum("kij,kj->ki", covariance, shift)
    means = fitted @ terms
    variances = np.einsum("in,kij,jn->kn", terms, covariance, terms)
    evidence = 0.5 * (
        np.einsum("ki,kij,kj->k", fitted, precision, fitted)
        - squares / noise**2
        - np.linalg.slogdet(precision)[1]
    )
    return means, variances, evidence
