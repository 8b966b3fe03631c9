"""Average precision of rankings, and its values on resampled test sets. Fractions in [0, 1].

Where a function takes `weights`, image i counts weights[..., i] times. With integers this equals repeating the image,
so a test set can be resampled a thousand times without sorting its images again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np


def precision_recall(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall at every distinct score, from the highest down.

    Images with equal scores enter together, so the order of the images cannot change the result.

    Args:
        positive: (N,) bool, whether an image is positive.
        scores: (N,) finite numbers, larger for more confident predictions.
        weights: (..., N) how often each image counts; once by default.

    Returns:
        Precision and recall, both (..., T) in [0, 1] with T <= N. Recall is NaN without positives.

    Raises:
        ValueError: The shapes differ, or a score is NaN or infinite.
    """
    positive, scores = np.asarray(positive, dtype=bool), np.asarray(scores, dtype=np.float64)
    if positive.shape != scores.shape or positive.ndim != 1:
        raise ValueError(f"expected two (N,) arrays, found {positive.shape} and {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity; a ranking of them means nothing")
    order = np.argsort(-scores, kind="stable")
    # one threshold for each distinct score: at the last image of those that share it
    last_of_tie = np.append(np.diff(scores[order]) != 0, True)[: len(order)]
    ranked = np.ones(len(order)) if weights is None else np.asarray(weights, dtype=np.float64)[..., order]
    true_positives = np.cumsum(ranked * positive[order], axis=-1)[..., last_of_tie]
    taken = np.cumsum(ranked, axis=-1)[..., last_of_tie]
    with np.errstate(invalid="ignore"):  # 0 / 0 without positives
        recall = true_positives / true_positives[..., -1:]
    return np.divide(true_positives, taken, out=np.zeros_like(taken), where=taken > 0), recall


def average_precision(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None
) -> float | np.ndarray:
    """Area under the monotone precision envelope at all points (VOC2010 and later, VISSL).

    The envelope takes for each recall the best precision at that recall or a larger one. The result is therefore never
    below scikit-learn's `average_precision_score`, which takes the precision as it is.

    Args:
        positive: (N,) bool, whether an image is positive.
        scores: (N,) finite numbers, larger for more confident predictions.
        weights: (..., N) how often each image counts; once by default.

    Returns:
        A float in [0, 1], or (...) of them with `weights`. NaN without positives.

    Raises:
        ValueError: The shapes differ, or a score is NaN or infinite.

    Example:
        >>> average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.7]))
        0.8333333333333333
    """
    if not np.any(positive):
        return _nan_for(weights)
    precision, recall = precision_recall(positive, scores, weights)
    return _plain(np.sum(np.diff(recall, prepend=0.0) * _envelope(precision), axis=-1))


def step_average_precision(positive: np.ndarray, scores: np.ndarray) -> float:
    """scikit-learn's `average_precision_score`: the sum of precision times the step in recall, without the envelope.

    Args:
        positive: (N,) bool, whether an image is positive.
        scores: (N,) finite numbers, larger for more confident predictions.

    Returns:
        A float in [0, 1], NaN without positives.

    Raises:
        ValueError: The shapes differ, or a score is NaN or infinite.
    """
    if not np.any(positive):
        return math.nan
    precision, recall = precision_recall(positive, scores)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def eleven_point_ap(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float | np.ndarray:
    """The metric of VOC2007: the mean of the best precision at recall >= 0, 0.1 ... 1.

    Args:
        positive: (N,) bool, whether an image is positive.
        scores: (N,) finite numbers, larger for more confident predictions.
        weights: (..., N) how often each image counts; once by default.

    Returns:
        A float in [0, 1], or (...) of them with `weights`. NaN without positives.

    Raises:
        ValueError: The shapes differ, or a score is NaN or infinite.
    """
    if not np.any(positive):
        return _nan_for(weights)
    precision, recall = precision_recall(positive, scores, weights)
    # recall that is never reached has precision 0
    best = np.append(_envelope(precision), np.zeros((*precision.shape[:-1], 1)), axis=-1)
    # tenth / 10, not 0.1 * tenth: the same correctly rounded division as in recall, so 3 of 10 reaches 0.3
    places = np.stack([(recall < tenth / 10).sum(axis=-1) for tenth in range(11)], axis=-1)
    points = np.take_along_axis(best, places, axis=-1)
    return _plain(np.where(np.isnan(recall[..., -1]), np.nan, points.mean(axis=-1)))


def sample_average_precision(positive: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The AP of each image over its classes, which the released AdCo code reports for VOC07.

    It is not comparable with VOC's mAP, which is the mean over classes of the AP over images.

    Args:
        positive: (N, C) bool, whether an image shows a class.
        scores: (N, C) finite numbers, larger for more confident predictions.

    Returns:
        (N,) of scikit-learn's average precision in [0, 1], NaN for an image without a positive class.

    Raises:
        ValueError: The shapes differ, or a score is NaN or infinite.
    """
    return np.array([step_average_precision(p, s) for p, s in zip(positive, scores, strict=True)])


def weighted_mean(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The mean over images as a metric for `bootstrap.interval`.

    Args:
        values: (N,) one value for each image. Images whose value is NaN are left out.

    Returns:
        A function (B, N) weights -> (B,) weighted means.
    """
    values = np.asarray(values, dtype=np.float64)
    counted = ~np.isnan(values)
    return lambda weights: weights[:, counted] @ values[counted] / weights[:, counted].sum(axis=1)


def resamples(images: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Test sets drawn with replacement.

    Args:
        images: Number of images N of the test set, and of each drawn one.
        draws: Number of test sets to draw.
        seed: Seed of numpy's default generator.

    Yields:
        (B, N) int64 with B <= 50: how often each image was drawn; B adds up to `draws`.
    """
    generator = np.random.default_rng(seed)
    for start in range(0, draws, 50):  # 50 at a time to save memory
        drawn = generator.integers(0, images, (min(50, draws - start), images))
        yield np.stack([np.bincount(row, minlength=images) for row in drawn])


def _envelope(precision: np.ndarray) -> np.ndarray:
    """(..., T) -> (..., T): the largest precision from each place on."""
    return np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]


def _nan_for(weights: np.ndarray | None) -> float | np.ndarray:
    return math.nan if weights is None else np.full(np.shape(weights)[:-1], np.nan)


def _plain(value: np.ndarray) -> float | np.ndarray:
    return float(value) if np.ndim(value) == 0 else value
