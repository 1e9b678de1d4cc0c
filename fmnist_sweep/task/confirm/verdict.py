"""What fresh seeds and the test set say, as numbers and sentences."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from fmnist_sweep.results.metrics import Measure
from fmnist_sweep.task.confirm.candidates import Candidate

CONFIDENCE = 0.95
FEWEST = 3  # values for an interval: that of two may be of any width by chance, or of none


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its sample standard deviation and Student's 95 % interval.

    std: None for a single value.
    low, high: None for fewer than `FEWEST` values.
    """

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of at least one value, with its Student-t interval."""
    n, middle = len(values), math.fsum(values) / len(values)
    if n < 2:
        return Mean(n, middle, None, None, None)
    std = float(np.std(values, ddof=1))
    if n < FEWEST:
        return Mean(n, middle, std, None, None)
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
    return Mean(n, middle, std, middle - reach, middle + reach)


@dataclass(frozen=True)
class CandidateResult:
    """A candidate on fresh seeds.

    values: the metric by seed; None if the training failed.
    fresh: their mean; None if a training failed.
    behind: the winner's lead, paired by seed, positive; None for the winner itself and if a
        training failed.
    """

    candidate: Candidate
    values: Mapping[int, float | None]
    fresh: Mean | None
    behind: Mean | None

    @property
    def within_noise(self) -> bool:
        """True if the winner's lead may be chance."""
        return self.behind is not None and (self.behind.low is None or self.behind.low <= 0)


def rank_candidates(
    results: Sequence[tuple[Candidate, Mapping[int, float | None]]], measure: Measure
) -> list[CandidateResult]:
    """Rank candidates by their mean over the seeds, those with a failed training last."""
    sign = 1 if measure.direction == "maximize" else -1
    fresh: list[tuple[Candidate, Mapping[int, float | None], Mean | None]] = []
    for candidate, values in results:
        known = [value for value in values.values() if value is not None]
        complete = len(known) == len(values)
        fresh.append((candidate, values, mean(known) if complete else None))
    fresh.sort(key=lambda one: -sign * one[2].mean if one[2] else math.inf)
    winner = fresh[0][1]

    def behind(values: Mapping[int, float | None]) -> Mean | None:
        pairs = [(winner[seed], values[seed]) for seed in values]
        leads = [sign * (a - b) for a, b in pairs if a is not None and b is not None]
        return mean(leads) if len(leads) == len(pairs) else None

    return [
        CandidateResult(candidate, values, found, behind(values) if position and found else None)
        for position, (candidate, values, found) in enumerate(fresh)
    ]


def selection_bias(
    candidates: Sequence[Candidate], table: Sequence[CandidateResult], measure: Measure
) -> Mean | None:
    """Return how much better the search's best value was than its configuration is on fresh seeds.

    Returns:
        The difference with the interval of the fresh mean, positive if the search was lucky. None
        if the candidate's training failed or the search has no value of this metric.
    """
    sign = 1 if measure.direction == "maximize" else -1
    first = candidates[0]
    own = next(one for one in table if one.candidate is first)
    if first.value is None or own.fresh is None:
        return None
    fresh = own.fresh
    gap = sign * (first.value - fresh.mean)
    if fresh.low is None or fresh.high is None:
        return Mean(fresh.n, gap, None, None, None)
    reach = fresh.high - fresh.mean
    return Mean(fresh.n, gap, fresh.std, gap - reach, gap + reach)


def per_class(
    confusions: Sequence[Sequence[Sequence[int]]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return recall, precision and F1 of each class, averaged over seeds, and the recall's spread.

    Args:
        confusions: for each seed, counts [classes][classes]: rows true, columns predicted.
        names: of the classes.
    """
    counts = np.array(confusions, dtype=float)
    hits = np.diagonal(counts, axis1=1, axis2=2)
    actual, predicted = counts.sum(axis=2), counts.sum(axis=1)
    recall = hits / np.maximum(actual, 1)
    precision = hits / np.maximum(predicted, 1)
    f1 = 2 * hits / np.maximum(actual + predicted, 1)
    mistaken = counts.mean(axis=0) - np.diag(hits.mean(axis=0))
    return [
        {
            "class": name,
            "images": int(actual[0, i]),
            "accuracy": float(recall[:, i].mean()),
            "accuracy_std": float(recall[:, i].std(ddof=1)) if len(counts) > 1 else None,
            "precision": float(precision[:, i].mean()),
            "f1": float(f1[:, i].mean()),
            "most_often_taken_for": names[int(mistaken[i].argmax())],
        }
        for i, name in enumerate(names)
    ]


def sampling_error(accuracy: float, images: int) -> float:
    """Return half the width of the 95 % interval of an accuracy on that many test images."""
    reach = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    return reach * math.sqrt(accuracy * (1 - accuracy) / images)
