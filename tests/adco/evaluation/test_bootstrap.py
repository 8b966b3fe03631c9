"""bootstrap.py: cases worked by hand, scikit-learn where both mean the same, a naive loop where they do not."""

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from adco.evaluation.average_precision import (
    average_precision,
    eleven_point_ap,
    precision_recall,
    sample_average_precision,
    step_average_precision,
    weighted_mean,
)
from adco.evaluation.bootstrap import hits_interval, interval, mean_over_classes, top_k_percent

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


# weights, intervals, other libraries


@pytest.mark.parametrize("metric", [average_precision, eleven_point_ap])
@pytest.mark.parametrize("seed", range(3))
def test_whole_weights_are_repetitions(metric, seed):
    """Image i counted n times is image i n times in the list, for many weightings at once, ties and zeros included."""
    generator = np.random.default_rng(seed)
    positive, scores = generator.random(40) < 0.3, generator.integers(0, 25, 40).astype(float)
    weights = generator.integers(0, 4, (7, 40))
    weights[0] = 1
    together = metric(positive, scores, weights)
    for row, value in zip(weights, together, strict=True):
        assert value == pytest.approx(metric(np.repeat(positive, row), np.repeat(scores, row)), abs=1e-12)
    assert together[0] == pytest.approx(metric(positive, scores))


@pytest.mark.parametrize("metric", [average_precision, eleven_point_ap])
def test_a_resample_without_positives_is_nan(metric):
    positive = np.array([True, False, False])
    values = metric(positive, np.array([1.0, 2.0, 3.0]), np.array([[0, 1, 2], [1, 1, 1]]))
    assert math.isnan(values[0]) and values[1] == metric(positive, np.array([1.0, 2.0, 3.0]))


def test_step_average_precision_is_scikit_learns():
    generator = np.random.default_rng(0)
    for _ in range(20):
        positive, scores = generator.random(50) < 0.3, generator.integers(0, 30, 50).astype(float)
        expected = average_precision_score(positive, scores)
        assert step_average_precision(positive, scores) == pytest.approx(expected, abs=1e-12)


def test_sample_average_precision_by_hand():
    """Over each image's classes: ranked + - + gives (1 + 2/3) / 2; a class found first gives 1; no class gives NaN."""
    positive = np.array([[True, False, True], [False, True, False], [False, False, False]])
    scores = np.array([[0.9, 0.5, 0.1], [0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    aps = sample_average_precision(positive, scores)
    assert aps[:2] == pytest.approx([(1 + 2 / 3) / 2, 1.0]) and math.isnan(aps[2])
    expected = [average_precision_score(p, s) for p, s in zip(positive[:2], scores[:2], strict=True)]
    assert aps[:2] == pytest.approx(expected)


def test_sample_ap_and_map_are_different_things():
    """A classifier that says the same of every image: mAP is the share of positives, sample AP can be perfect."""
    positive = np.array([[True, False]] * 9 + [[True, True]])
    scores = np.tile([0.9, 0.1], (10, 1))
    assert sample_average_precision(positive, scores).mean() == 1.0
    assert average_precision(positive[:, 1], scores[:, 1]) == pytest.approx(0.1)


def test_interval_of_a_share_is_the_binomials():
    hits = np.arange(1000) < 700
    low, high = hits_interval(hits)
    reach = 100 * 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert (low, high) == pytest.approx((70 - reach, 70 + reach), abs=0.35)
    assert hits_interval(hits) == (low, high) and hits_interval(hits, seed=1) != (low, high)
    assert hits_interval(np.ones(50, dtype=bool)) == (100.0, 100.0)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Over 200 drawn test sets, the 95% interval of a mean holds the true mean about 190 times."""
    generator, covered = np.random.default_rng(0), 0
    for trial in range(200):
        low, high = interval(weighted_mean(generator.random(150)), 150, seed=trial, replicates=500)
        covered += low <= 0.5 <= high
    assert 180 <= covered <= 198


def test_intervals_leave_out_images_without_a_value():
    values = np.array([0.2, np.nan, 0.8])
    assert weighted_mean(values)(np.array([[1, 5, 1], [3, 1, 1]])) == pytest.approx([0.5, (0.6 + 0.8) / 4])


@pytest.mark.parametrize("eleven", [False, True])
def test_equals_detectron2s_voc_evaluator(eleven):
    """Its `voc_ap` of our precision and recall, all-point and 11-point, on ten random rankings."""
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detection.compat import apply_patches

    apply_patches()
    evaluator = pytest.importorskip("detectron2.evaluation.pascal_voc_evaluation", reason="detectron2 does not import")
    generator = np.random.default_rng(0)
    for _ in range(10):
        positive, scores = generator.random(300) < 0.2, generator.standard_normal(300)
        precision, recall = precision_recall(positive, scores)
        expected = evaluator.voc_ap(recall, precision, use_07_metric=eleven)
        ours = (eleven_point_ap if eleven else average_precision)(positive, scores)
        # its thresholds are multiples of 0.1 in floating point: a recall of exactly 0.3 may fall to the next point
        assert ours == pytest.approx(expected, abs=2e-2 if eleven else 1e-12)


def test_against_torchmetrics_where_definitions_agree():
    """Its multilabel AP is scikit-learn's (no envelope): equal to `step_average_precision`, never above ours."""
    classification = pytest.importorskip("torchmetrics.classification", reason="torchmetrics is not installed")
    import torch

    generator = np.random.default_rng(0)
    positive, scores = generator.random((80, 5)) < 0.3, generator.random((80, 5))
    metric = classification.MultilabelAveragePrecision(num_labels=5, average=None)
    theirs = metric(torch.from_numpy(scores), torch.from_numpy(positive).int()).numpy()
    assert [step_average_precision(positive[:, c], scores[:, c]) for c in range(5)] == pytest.approx(theirs, abs=1e-6)
    assert all(average_precision(positive[:, c], scores[:, c]) >= theirs[c] - 1e-6 for c in range(5))
