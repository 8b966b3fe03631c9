"""Scores of classifiers, as pure functions of targets and scores. Fractions in [0, 1] unless a name says percent.

Average precision itself is in adco/evaluation/average_precision.py, because comparing two records needs it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from adco.evaluation.average_precision import (
    average_precision,
    eleven_point_ap,
    precision_recall,
    resamples,
    sample_average_precision,
    step_average_precision,
    weighted_mean,
)
from adco.evaluation.records import Score

__all__ = [
    "REPLICATES", "average_precision", "eleven_point_ap", "hits_interval", "hits_score", "in_percent", "interval",
    "mean_over_classes", "precision_recall", "sample_average_precision", "step_average_precision", "top_k_hits",
    "top_k_percent", "weighted_mean",
]  # fmt: skip

REPLICATES = 1000


def mean_over_classes(values: Sequence[float]) -> tuple[float, int]:
    """The mean of the values that are not NaN, and how many these are; (NaN, 0) when none is."""
    counted = [value for value in values if not math.isnan(value)]
    return (float(np.mean(counted)), len(counted)) if counted else (math.nan, 0)


def top_k_hits(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> np.ndarray:
    """(N,) bool: the rows whose label is among the k largest scores; among equal scores the lower class comes first.

    scores: (N, C); labels: (N,) integers in [0, C). With k >= C all rows hit: ask for a k below C.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    rank = (scores > own).sum(axis=1) + ((scores == own) & earlier).sum(axis=1)
    return (rank < k) & ~np.isnan(own[:, 0])


def top_k_percent(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Percent of the rows that hit (`top_k_hits`)."""
    return float(100.0 * np.mean(top_k_hits(scores, labels, k)))


def interval(
    metric: Callable[[np.ndarray], np.ndarray], images: int, seed: int = 0, replicates: int = REPLICATES
) -> tuple[float, float]:
    """The 95% bootstrap interval (percentiles 2.5 and 97.5) of a metric over test sets drawn from the images.

    metric: (B, images) whole-numbered weights -> (B,) values. A replicate whose value is NaN is left out.
    """
    values = [np.asarray(metric(weights)) for weights in resamples(images, replicates, seed)]
    low, high = np.nanpercentile(np.concatenate(values), [2.5, 97.5])
    return float(low), float(high)


def hits_interval(hits: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95% interval, in percent, of the share of (N,) hits over the images."""
    metric = weighted_mean(hits)
    return interval(lambda weights: 100 * metric(weights), len(hits), seed)


def hits_score(hits: np.ndarray, seed: int = 0) -> Score:
    """The share of (N,) hits over the images in percent, with its 95% interval."""
    return Score.over_images(100 * float(hits.mean()), hits_interval(hits, seed))


def in_percent(score: Score) -> str:
    """`46.75 %, 95% interval 45.19 to 48.31`."""
    interval_ = "" if score.low is None else f", 95% interval {score.low:.2f} to {score.high:.2f}"
    return f"{score:.2f} %{interval_}"
