"""Continue learning curves by power laws, with an uncertainty."""

import numpy as np

from benchmarks.simulation.search import Floats

EXPONENTS = (0.25, 0.5, 1.0, 2.0)
NOISE = 0.004  # standard deviation of an epoch's accuracy about the law
# Mean and standard deviation of a law's limit, and of the first epoch's distance from it, before
# any epoch: an MLP ends somewhere near 0.88.
LIMIT, DISTANCE = (0.88, 0.03), (0.05, 0.05)


def continue_curves(accuracy: Floats) -> tuple[Floats, Floats]:
    """Predict the accuracy at each epoch from the epochs until each other one.

    The law is a - b n^-c, where n is the epoch. For each exponent c, a and b are fitted by Bayesian
    least squares; the prediction mixes the exponents by how well they explain the curve.

    Args:
        accuracy: in [0, 1], after each epoch [curves, epochs].

    Returns:
        Means and standard deviations [curves, epochs known, epoch]. An epoch that is known has its
        accuracy and a standard deviation of 0.
    """
    epochs = accuracy.shape[1]
    means = np.repeat(accuracy[:, None], epochs, axis=1)
    deviations = np.zeros_like(means)
    for known in range(1, epochs):
        parts = [_fit(accuracy[:, :known], exponent, epochs) for exponent in EXPONENTS]
        evidence = np.stack([part[2] for part in parts])
        weights = np.exp(evidence - evidence.max(0))
        weights = (weights / weights.sum(0))[:, :, None]  # [exponents, curves, 1]
        mean = np.stack([part[0] for part in parts])
        variance = np.stack([part[1] for part in parts])[:, None]
        mixed = (weights * mean).sum(0)
        spread = (weights * (variance + (mean - mixed) ** 2)).sum(0)
        means[:, known - 1, known:] = mixed
        deviations[:, known - 1, known:] = np.sqrt(spread)
    return means, deviations


def _fit(accuracy: Floats, exponent: float, epochs: int) -> tuple[Floats, Floats, Floats]:
    """Fit laws with a given exponent.

    Args:
        accuracy: [curves, epochs known].
        exponent: c.
        epochs: the last epoch to predict.

    Returns:
        Of the unknown epochs, means [curves, epochs] and variances [epochs], noise included; the
        logarithm of the curves' likelihood, up to a constant [curves].
    """
    known = accuracy.shape[1]
    numbers = np.arange(1, epochs + 1)
    terms = np.stack([np.ones(epochs), -(numbers**-exponent)], axis=1)
    prior_mean, prior = np.array([LIMIT[0], DISTANCE[0]]), np.diag([LIMIT[1], DISTANCE[1]]) ** 2
    seen, ahead = terms[:known], terms[known:]
    covariance = seen @ prior @ seen.T + NOISE**2 * np.eye(known)
    inverse = np.linalg.inv(covariance)
    gain = prior @ seen.T @ inverse
    rest = accuracy - seen @ prior_mean
    mean = (prior_mean + rest @ gain.T) @ ahead.T
    posterior = prior - gain @ seen @ prior
    variance = ((ahead @ posterior) * ahead).sum(1) + NOISE**2
    evidence = -0.5 * (((rest @ inverse) * rest).sum(1) + np.linalg.slogdet(covariance)[1])
    return mean, variance, evidence
