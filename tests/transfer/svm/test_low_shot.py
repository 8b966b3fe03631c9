"""transfer/svm/low_shot.py: what is drawn, and that each way to choose C is what its name says."""

import numpy as np
import pytest

from adco.evaluation.average_precision import average_precision
from adco.utils.errors import UserError
from transfer.svm.liblinear import decisions
from transfer.svm.low_shot import as_text, draw, low_shot_scores
from transfer.svm.protocols import PROTOCOLS, LowShot
from transfer.svm.svm import Solver, SvmRule, counted_targets, normalise_rows, svm_scores

BY_CLASS, POOLED = LowShot((1, 3), 2, False, "test"), LowShot((1, 3), 2, True, "fixed")
COSTS = (0.01, 1.0, 100.0)


def problem(n=90, classes=4, seed=0):
    """(2n, D) rows and (2n, C) labels of 1, -1 and some 0, halved into trainval and test."""
    generator = np.random.default_rng(seed)
    present = generator.random((2 * n, classes)) < 0.25
    rows = generator.standard_normal((2 * n, 12)) + 1.5 * present @ generator.standard_normal((classes, 12))
    labels = np.where(present, 1, -1)
    labels[generator.random(labels.shape) < 0.08] = 0
    return rows[:n], labels[:n], rows[n:], labels[n:]


def test_each_class_draws_k_positives_and_its_negatives():
    _, labels, _, _ = problem()
    draws = draw(labels, BY_CLASS, seed=0)
    assert [(d.k, d.sample) for d in draws] == [(1, 0), (1, 1), (3, 0), (3, 1)]
    for drawn in draws:
        assert (drawn.labels == 1).sum(axis=0).tolist() == [drawn.k] * 4
        assert (drawn.labels == -1).sum(axis=0).tolist() == [3 * drawn.k] * 4  # (classes - 1) k
        trained = drawn.labels != 0
        assert (labels[drawn.images][trained] == drawn.labels[trained]).all()  # a difficult image is never drawn
        assert trained.any(axis=1).all() and len(set(drawn.images)) == len(drawn.images)


def test_pooled_draws_k_images_a_class_with_all_labels():
    _, labels, _, _ = problem()
    for drawn in draw(labels, POOLED, seed=0):
        assert len(drawn.images) == 4 * drawn.k
        np.testing.assert_array_equal(drawn.labels, np.where(labels[drawn.images] == 1, 1, -1))  # difficult: negative
        for c in range(4):
            assert (labels[drawn.images[c * drawn.k : (c + 1) * drawn.k], c] == 1).all()


def test_draws_are_the_seeds_and_differ():
    _, labels, _, _ = problem()
    ids, names = [f"{i:06d}" for i in range(len(labels))], list("abcd")
    texts = [as_text(draw(labels, BY_CLASS, seed), ids, names) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    first, second = draw(labels, BY_CLASS, 0)[2:]
    assert set(first.images) != set(second.images)
    lines = texts[0].splitlines()
    assert len(lines) == 4 * 4 * 2 and lines[0].startswith("1 0 a + ") and len(lines[1].split()) == 4 + 3


def test_too_few_images_are_an_error():
    labels = np.full((50, 2), -1)
    labels[:2] = 1
    with pytest.raises(UserError, match="3 positives of class 0, trainval has 2.*--shots"):
        draw(labels, LowShot((3,), 1, False, "test"), 0)


@pytest.mark.parametrize("solver", [Solver(), Solver("liblinear")], ids=["newton", "liblinear"])
def test_vissl_takes_the_cost_that_is_best_on_the_test(solver):
    """Written out as loops over draws, costs and classes with LinearSVC."""
    train, labels, test, test_labels = problem()
    rule, draws = SvmRule(COSTS, drop_difficult=True), draw(labels, BY_CLASS, 0)
    scores, settings = low_shot_scores(train, test, test_labels, draws, BY_CLASS, rule, solver)
    for k in (1, 3):
        table = {cost: [] for cost in COSTS}
        for drawn in (d for d in draws if d.k == k):
            for cost in COSTS:
                aps = []
                for c in range(4):
                    own = drawn.labels[:, c] != 0
                    rows = normalise_rows(train[drawn.images[own]])
                    values, _ = decisions(rows, drawn.labels[own, c], normalise_rows(test), cost, 0)
                    positive, counted = counted_targets(test_labels[:, c], True)
                    aps.append(average_precision(positive[counted], values[counted]))
                table[cost].append(100 * np.mean(aps))
        best = max(COSTS, key=lambda cost: np.mean(table[cost]))
        assert settings[f"k{k}/cost"] == best
        assert scores[f"mAP/k{k}"] == pytest.approx(np.mean(table[best]), abs=0.05)
        assert scores[f"mAP/k{k}"].std == pytest.approx(np.std(table[best], ddof=1), abs=0.05)


def test_the_cv_variant_does_not_use_the_test():
    """VISSL chooses C on the test; the variant with cross-validation gives the APs of SVMs that never see it."""
    train, labels, test, test_labels = problem()
    few = PROTOCOLS["lowshot-vissl-cv"].low_shot
    assert few.cost == "cv" and PROTOCOLS["lowshot-vissl"].low_shot.cost == "test"
    (drawn,) = draw(labels, LowShot((3,), 1, False, "cv"), 0)
    rule = SvmRule(COSTS, drop_difficult=True)
    scores, _ = low_shot_scores(train, test, test_labels, [drawn], LowShot((3,), 1, False, "cv"), rule, Solver())
    aps = []
    for c in range(4):
        own = drawn.labels[:, c] != 0
        given = (train[drawn.images[own]], drawn.labels[own, c, None], test, test_labels[:, c, None], rule)
        aps.append(svm_scores(*given, Solver("liblinear"))[0].ap)
    assert scores["mAP/k3"] == pytest.approx(100 * np.mean(aps), abs=0.05)


def test_pooled_is_one_svm_a_class_on_all_drawn_images():
    train, labels, test, test_labels = problem()
    (drawn,) = draw(labels, LowShot((3,), 1, True, "fixed"), 0)
    rule = PROTOCOLS["lowshot-pcl"].rule
    scores, settings = low_shot_scores(
        train, test, test_labels, [drawn], LowShot((3,), 1, True, "fixed"), rule, Solver()
    )
    by_hand = svm_scores(train[drawn.images], drawn.labels, test, test_labels, rule, Solver("liblinear"))
    assert scores["mAP/k3"] == pytest.approx(100 * np.mean([score.ap for score in by_hand]), abs=0.05)
    assert scores["mAP/k3"].std is None and len(settings["k3/trials"]) == 1
