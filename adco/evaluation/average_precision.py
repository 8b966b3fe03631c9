"""Average precision of rankings, and how it moves when the test images are drawn again. Fractions in [0, 1].

Where `weights` are taken, image i counts weights[..., i] times: with whole numbers that is the same as repeating it,
which is how a test set is resampled a thousand times without sorting its images again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np


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


def weighted_mean(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A metric for `interval`: the mean of (N,) per-image values, those that are NaN left out."""
    values = np.asarray(values, dtype=np.float64)
    counted = ~np.isnan(values)
    return lambda weights: weights[:, counted] @ values[counted] / weights[:, counted].sum(axis=1)


def resamples(images: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Test sets drawn with replacement from `images`, as (<= 50, images) counts of each image, `draws` in all."""
    generator = np.random.default_rng(seed)
    for start in range(0, draws, 50):  # 50 at a time: little memory
        drawn = generator.integers(0, images, (min(50, draws - start), images))
        yield np.stack([np.bincount(row, minlength=images) for row in drawn])


def _envelope(precision: np.ndarray) -> np.ndarray:
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def _nan_for(weights: np.ndarray | None) -> float | np.ndarray:
    return math.nan if weights is None else np.full(np.shape(weights)[:-1], np.nan)


def _plain(value: np.ndarray) -> float | np.ndarray:
    return float(value) if np.ndim(value) == 0 else value
