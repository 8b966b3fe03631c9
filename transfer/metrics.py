"""Scores of classifiers, as pure functions of targets and scores. Fractions in [0, 1] unless a name says percent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def precision_recall(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at every distinct score, from the highest down.

    positive: (N,) bool; scores: (N,) finite numbers, larger meaning surer. Images with one score enter together, so the
    order of the images cannot move the result. Returns two (T,) arrays, T <= N; recall is NaN without positives.
    """
    positive, scores = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    if positive.shape != scores.shape or positive.ndim != 1:
        raise ValueError(f"expected two (N,) arrays, found {positive.shape} and {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity; a ranking of them means nothing")
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)[: len(order)]
    true_positives = np.cumsum(positive[order])[last_of_tie]
    taken = np.arange(1, len(order) + 1)[last_of_tie]
    recall = true_positives / positive.sum() if positive.any() else np.full(len(taken), np.nan)
    return true_positives / taken, recall


def average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """All-point area under the monotone precision envelope (VOC2010 and later, VISSL): NaN without positives.

    The envelope gives each recall the best precision at that recall or a larger one, so this is never below
    scikit-learn's `average_precision_score`, which takes the precision as it is.
    """
    if not np.any(positive):
        return math.nan
    precision, recall = precision_recall(positive, scores)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))


def eleven_point_ap(positive: np.ndarray, scores: np.ndarray) -> float:
    """VOC2007's own metric: the mean of the best precision at recall >= 0, 0.1 ... 1. NaN without positives."""
    if not np.any(positive):
        return math.nan
    precision, recall = precision_recall(positive, scores)
    # tenth / 10, not 0.1 * tenth: the same correctly rounded division as in recall, so 3 of 10 reaches 0.3
    best = [precision[recall >= tenth / 10].max() for tenth in range(11)]
    return float(np.mean(best))


def mean_over_classes(values: Sequence[float]) -> tuple[float, int]:
    """The mean of the values that are not NaN, and how many these are; (NaN, 0) when none is."""
    counted = [value for value in values if not math.isnan(value)]
    return (float(np.mean(counted)), len(counted)) if counted else (math.nan, 0)


def top_k_percent(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Percent of the rows whose label is among the k largest scores; among equal scores the lower class comes first.

    scores: (N, C); labels: (N,) integers in [0, C). With k >= C this is 100: ask for a k below C.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1])[None, :] < labels[:, None]
    rank = (scores > own).sum(axis=1) + ((scores == own) & earlier).sum(axis=1)
    return float(100.0 * np.mean((rank < k) & ~np.isnan(own[:, 0])))
