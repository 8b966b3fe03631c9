"""Scores of classifiers, as pure functions of targets and scores. Fractions in [0, 1] unless a name says percent.

Where `weights` are taken, image i counts weights[..., i] times: with whole numbers that is the same as repeating it,
which is how `interval` resamples the images of a test set a thousand times without sorting them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from adco.records import Score

REPLICATES = 1000


def precision_recall(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at every distinct score, from the highest down.

    positive: (N,) bool; scores: (N,) finite numbers, larger meaning surer. Images with one score enter together, so the
    order of the images cannot move the result. weights: (..., N), all 1 when absent. Returns two (..., T) arrays,
    T <= N; recall is NaN without positives.
    """
    positive, scores = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    if positive.shape != scores.shape or positive.ndim != 1:
        raise ValueError(f"expected two (N,) arrays, found {positive.shape} and {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity; a ranking of them means nothing")
    order = np.argsort(-scores, kind="stable")
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)[: len(order)]
    ranked = np.ones(len(order)) if weights is None else np.asarray(weights, dtype=np.float64)[..., order]
    true_positives = np.cumsum(ranked * positive[order], axis=-1)[..., last_of_tie]
    taken = np.cumsum(ranked, axis=-1)[..., last_of_tie]
    with np.errstate(invalid="ignore"):
        recall = true_positives / true_positives[..., -1:]
    return np.divide(true_positives, taken, out=np.zeros_like(taken), where=taken > 0), recall


def average_precision(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """All-point area under the monotone precision envelope (VOC2010 and later, VISSL): NaN without positives.

    The envelope gives each recall the best precision at that recall or a larger one, so this is never below
    scikit-learn's `average_precision_score`, which takes the precision as it is.
    """
    if not np.any(positive):
        return _nan_for(weights)
    precision, recall = precision_recall(positive, scores, weights)
    return _plain(np.sum(np.diff(recall, prepend=0.0) * _envelope(precision), axis=-1))


def step_average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """scikit-learn's `average_precision_score`: the sum of precision times the step in recall, without the envelope."""
    if not np.any(positive):
        return math.nan
    precision, recall = precision_recall(positive, scores)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def eleven_point_ap(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """VOC2007's own metric: the mean of the best precision at recall >= 0, 0.1 ... 1. NaN without positives."""
    if not np.any(positive):
        return _nan_for(weights)
    precision, recall = precision_recall(positive, scores, weights)
    best = np.append(_envelope(precision), np.zeros((*precision.shape[:-1], 1)), axis=-1)
    # tenth / 10, not 0.1 * tenth: the same correctly rounded division as in recall, so 3 of 10 reaches 0.3
    places = np.stack([(recall < tenth / 10).sum(axis=-1) for tenth in range(11)], axis=-1)
    points = np.take_along_axis(best, places, axis=-1)
    return _plain(np.where(np.isnan(recall[..., -1]), np.nan, points.mean(axis=-1)))


def sample_average_precision(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The AP of each IMAGE over its classes, as the released AdCo code scores VOC07: not comparable with VOC mAP.

    positive: (N, C) bool; scores: (N, C). Returns (N,) of scikit-learn's average precision, NaN for an image without
    a positive class.
    """
    return np.array([step_average_precision(p, s) for p, s in zip(positive, scores, strict=True)])


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


def weighted_mean(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A metric for `interval`: the mean of (N,) per-image values, those that are NaN left out."""
    values = np.asarray(values, dtype=np.float64)
    counted = ~np.isnan(values)
    return lambda weights: weights[:, counted] @ values[counted] / weights[:, counted].sum(axis=1)


def interval(
    metric: Callable[[np.ndarray], np.ndarray], images: int, seed: int = 0, replicates: int = REPLICATES
) -> tuple[float, float]:
    """The 95% bootstrap interval (percentiles 2.5 and 97.5) of a metric over test sets drawn from the images.

    metric: (B, images) whole-numbered weights -> (B,) values. A replicate whose value is NaN is left out.
    """
    generator, values = np.random.default_rng(seed), []
    for start in range(0, replicates, 50):  # 50 at a time: little memory
        drawn = generator.integers(0, images, (min(50, replicates - start), images))
        weights = np.stack([np.bincount(row, minlength=images) for row in drawn])
        values.append(np.asarray(metric(weights)))
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


def _envelope(precision: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def _nan_for(weights: np.ndarray | None) -> float | np.ndarray:
    return math.nan if weights is None else np.full(np.shape(weights)[:-1], np.nan)


def _plain(value: np.ndarray) -> float | np.ndarray:
    return float(value) if np.ndim(value) == 0 else value
