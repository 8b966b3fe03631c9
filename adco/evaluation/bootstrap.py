"""Scores of classifiers with bootstrap intervals, as pure functions. Fractions in [0, 1] unless a name says percent.

Average precision is in adco/evaluation/average_precision.py, because the comparison of two records needs it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from adco.evaluation.average_precision import resamples, weighted_mean
from adco.evaluation.score import Score

REPLICATES = 1000  # resampled test sets of an interval


def mean_over_classes(values: Sequence[float]) -> tuple[float, int]:
    """The mean over the classes whose value is not NaN.

    Args:
        values: One value for each class.

    Returns:
        The mean and the number of values in it; (NaN, 0) if all are NaN.
    """
    counted = [value for value in values if not math.isnan(value)]
    return (float(np.mean(counted)), len(counted)) if counted else (math.nan, 0)


def top_k_hits(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """Which images have their label among the k largest scores; of equal scores the lower class comes first.

    Args:
        scores: (N, C) numbers.
        labels: (N,) integers in [0, C).
        k: From 1 to C - 1; with k >= C every image counts as a hit.

    Returns:
        (N,) bool, False where the score of the label is NaN.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    own = scores[np.arange(len(labels)), labels][:, None]
    # rank of the label: larger scores, and equal scores of lower classes, come before it
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    rank = (scores > own).sum(axis=1) + ((scores == own) & earlier).sum(axis=1)
    return (rank < k) & ~np.isnan(own[:, 0])


def top_k_percent(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Top-k accuracy in percent; see `top_k_hits` for the arguments."""
    return float(100.0 * np.mean(top_k_hits(scores, labels, k)))


def interval(
    metric: Callable[[np.ndarray], np.ndarray], images: int, seed: int = 0, replicates: int = REPLICATES
) -> tuple[float, float]:
    """The 95% percentile interval (2.5 to 97.5) of a metric over bootstrap test sets (Efron, 1979).

    Args:
        metric: (B, images) integers, how often each image counts -> (B,) values.
        images: Number of test images.
        seed: Seed of the resampling.
        replicates: Number of resampled test sets. Those on which the metric is NaN are left out.

    Returns:
        The lower and the upper end, in the unit of the metric.
    """
    values = [np.asarray(metric(weights)) for weights in resamples(images, replicates, seed)]
    low, high = np.nanpercentile(np.concatenate(values), [2.5, 97.5])
    return float(low), float(high)


def hits_interval(hits: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95% bootstrap interval of an accuracy.

    Args:
        hits: (N,) bool or 0 and 1, whether an image was classified correctly.
        seed: Seed of the resampling.

    Returns:
        The lower and the upper end in percent.
    """
    metric = weighted_mean(hits)
    return interval(lambda weights: 100 * metric(weights), len(hits), seed)


def hits_score(hits: np.ndarray, seed: int = 0) -> Score:
    """An accuracy in percent with its 95% bootstrap interval; see `hits_interval` for the arguments."""
    return Score.over_images(100 * float(hits.mean()), hits_interval(hits, seed))


def in_percent(score: Score) -> str:
    """A score as text: `46.75 %, 95% interval 45.19 to 48.31`."""
    interval_ = "" if score.low is None else f", 95% interval {score.low:.2f} to {score.high:.2f}"
    return f"{score:.2f} %{interval_}"
