"""transfer/metrics.py: cases worked by hand, scikit-learn where both mean the same, a naive loop where they do not."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from transfer.metrics import average_precision, eleven_point_ap, mean_over_classes, precision_recall, top_k_percent

# Ranked: + - - + +. Precision at the positives: 1/1, 2/4, 3/5; the envelope lifts the second to 3/5.
POSITIVE = np.array([True, False, False, True, True])
SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5])


def vissl_loop(positive, scores):
    """The textbook definition, one image at a time (for scores without ties)."""
    ranked = [positive[i] for i in sorted(range(len(scores)), key=lambda i: -scores[i])]
    precision = [sum(ranked[: n + 1]) / (n + 1) for n in range(len(ranked))]
    return sum(max(precision[n:]) for n in range(len(ranked)) if ranked[n]) / sum(ranked)


def test_average_precision_by_hand():
    assert average_precision(POSITIVE, SCORES) == pytest.approx((1 + 3 / 5 + 3 / 5) / 3)
    assert average_precision(np.array([True, True, False]), np.array([3, 2, 1])) == 1.0
    assert average_precision(np.array([False, True]), np.array([2, 1])) == 0.5


def test_eleven_point_by_hand():
    """Recall 1/3 is reached at precision 1: thresholds 0 .. 0.3 (4 of 11); the other 7 get 3/5."""
    assert eleven_point_ap(POSITIVE, SCORES) == pytest.approx((4 * 1 + 7 * 3 / 5) / 11)


def test_eleven_point_counts_a_recall_that_equals_a_threshold():
    """3 of 10 positives found first: recall is exactly .3, which 0.1 * 3 in floating point is not."""
    positive = np.array([True] * 3 + [False] * 10 + [True] * 7)
    scores = -np.arange(20.0)
    assert eleven_point_ap(positive, scores) == pytest.approx((4 * 1 + 7 * 10 / 20) / 11)


def test_the_envelope_is_what_parts_us_from_scikit_learn():
    """scikit-learn sums the raw precision: 1/2 instead of 3/5 for the second positive of the hand-worked case."""
    ours, theirs = average_precision(POSITIVE, SCORES), average_precision_score(POSITIVE, SCORES)
    assert theirs == pytest.approx((1 + 2 / 4 + 3 / 5) / 3)
    assert ours - theirs == pytest.approx((3 / 5 - 2 / 4) / 3)


def test_equals_scikit_learn_where_precision_only_falls():
    """Once precision at the positives never rises down the ranking, the envelope changes nothing."""
    positive = np.array([True, True, False, True, False, False, False, True, False, False])
    scores = -np.arange(10.0)
    assert average_precision(positive, scores) == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_never_below_scikit_learn_and_equal_to_the_loop(seed):
    generator = np.random.default_rng(seed)
    positive, scores = generator.random(60) < 0.3, generator.standard_normal(60)
    ours = average_precision(positive, scores)
    assert ours == pytest.approx(vissl_loop(positive, scores), abs=1e-12)
    assert ours > average_precision_score(positive, scores)


@pytest.mark.parametrize("seed", range(5))
def test_order_of_tied_images_does_not_matter(seed):
    generator = np.random.default_rng(seed)
    positive, scores = generator.random(80) < 0.4, generator.integers(0, 6, 80).astype(float)
    shuffled = generator.permutation(80)
    assert average_precision(positive, scores) == average_precision(positive[shuffled], scores[shuffled])
    precision, recall = precision_recall(positive, scores)
    raw = np.sum(np.diff(recall, prepend=0) * precision)
    assert raw == pytest.approx(average_precision_score(positive, scores), abs=1e-12)  # without envelope: the same


def test_no_positives_is_nan_and_not_counted():
    none = np.zeros(4, dtype=bool)
    assert math.isnan(average_precision(none, np.arange(4)))
    assert math.isnan(eleven_point_ap(none, np.arange(4)))
    assert mean_over_classes([0.5, math.nan, 1.0]) == (0.75, 2)
    mean, counted = mean_over_classes([math.nan])
    assert math.isnan(mean) and counted == 0


def test_scores_that_cannot_be_ranked_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        average_precision(np.array([True, False]), np.array([np.nan, 1.0]))
    with pytest.raises(ValueError, match="shape|expected"):
        average_precision(np.array([True, False]), np.array([1.0]))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_equals_scikit_learn(k):
    generator = np.random.default_rng(0)
    scores, labels = generator.standard_normal((200, 8)), generator.integers(0, 8, 200)
    expected = 100 * top_k_accuracy_score(labels, scores, k=k, labels=np.arange(8))
    assert top_k_percent(scores, labels, k) == pytest.approx(expected)


def test_top_k_with_equal_scores_takes_the_lower_class():
    scores = np.zeros((3, 3))
    assert top_k_percent(scores, np.array([0, 1, 2]), 1) == pytest.approx(100 / 3)
    assert top_k_percent(scores, np.array([0, 1, 2]), 2) == pytest.approx(200 / 3)


def test_rows_of_nan_are_wrong_not_right():
    assert top_k_percent(np.full((2, 3), np.nan), np.array([0, 1]), 1) == 0.0
