"""transfer/svm/svm.py: the classifier of the protocols, how C is chosen, and what happens to difficult images."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from adco.evaluation.average_precision import average_precision
from transfer.svm.liblinear import best_cost, cross_validated_ap, linear_svc
from transfer.svm.newton_cg import SharedFeatures, cg_step, direct_step, eigenbasis, minimise
from transfer.svm.svm import Solver, SvmRule, class_weights, fold_masks, normalise_rows, svm_scores, with_constant

COSTS = (0.01, 1.0, 1000.0)
PCL = SvmRule(costs=(0.5,), drop_difficult=False)
LIBLINEAR, NEWTON = Solver("liblinear", jobs=1), Solver("newton")
BOTH = pytest.mark.parametrize("solver", [LIBLINEAR, NEWTON], ids=["liblinear", "newton"])


def small_feature(n=90, seed=0):
    """A large feature that is wrong for a quarter of the images, and a small one that never is: it needs a large C."""
    generator = np.random.default_rng(seed)
    y = np.where(np.arange(n) % 3 == 0, 1, -1)
    large = np.where(generator.random(n) < 0.25, -y, y)
    return np.stack([large, 0.05 * y, np.ones(n)], axis=1), y


def weak_features(n=90, seed=1):
    """Thirty weak features with much noise: a small C averages them and is best, a large C fits the noise."""
    y = np.where(np.arange(n) % 3 == 0, 1, -1)
    return 0.3 * (np.random.default_rng(seed).standard_normal((n, 30)) + 0.175 * y[:, None]), y


def test_normalise_rows_as_the_protocols_write_it():
    rows = normalise_rows(np.array([[3.0, 4.0], [0.0, 0.0], [1e-5, 0.0]], dtype=np.float32))
    assert rows.dtype == np.float64
    np.testing.assert_allclose(rows, [[3 / 5.00001, 4 / 5.00001], [0, 0], [0.5, 0]], rtol=1e-6)


def test_classifier_minimises_the_protocols_objective():
    """L2 + C * squared hinge, positives twice: the gradient of that, written out, vanishes at the fitted weights.

    The intercept is one more weight on a constant 1 (intercept_scaling), so it is penalised too.
    """
    x, y = weak_features()
    svc = linear_svc(0.5, 0).set_params(tol=1e-10, max_iter=100000).fit(x, y)
    x1, w = np.column_stack([x, np.ones(len(x))]), np.append(svc.coef_[0], svc.intercept_)
    slack = np.maximum(0, 1 - y * (x1 @ w))
    gradient = w - 2 * 0.5 * (np.where(y == 1, 2, 1) * slack * y) @ x1
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_settings_are_the_protocols():
    settings = linear_svc(0.5, 0).get_params()
    expected = {"penalty": "l2", "loss": "squared_hinge", "dual": True, "tol": 1e-4, "max_iter": 2000, "C": 0.5}
    assert expected.items() <= settings.items()
    assert settings["class_weight"] == {1: 2, -1: 1} and settings["random_state"] == 0


@BOTH
@pytest.mark.parametrize(("problem", "best"), [(small_feature, 1000.0), (weak_features, 0.01)])
def test_cross_validation_finds_the_planted_cost(problem, best, solver):
    x, y = problem()
    labels = y[:, None]
    (score,) = svm_scores(x, labels, x, labels, SvmRule(COSTS, drop_difficult=True), solver)
    assert score.cost == best
    others = [ap for cost, ap in score.cross_validated.items() if cost != best]
    assert score.cross_validated[best] > max(others) + 0.02


@pytest.mark.parametrize("cost", COSTS)
def test_cross_validated_ap_equals_the_explicit_loop(cost):
    x, y = weak_features()
    values = []
    for inside, outside in StratifiedKFold(3).split(x, y):
        svc = LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=True, max_iter=2000, random_state=0)
        svc.fit(x[inside], y[inside])
        values.append(average_precision_score(y[outside], svc.decision_function(x[outside])))
    ap, _ = cross_validated_ap(x, y, cost, 3, 0)
    assert ap == pytest.approx(np.mean(values), abs=1e-12)


def test_first_of_equal_costs_is_taken():
    assert best_cost({0.01: 0.5, 0.1: 0.7, 1.0: 0.7}) == 0.1


@BOTH
@pytest.mark.parametrize("drop", [True, False])
def test_difficult_is_negative_in_training_and_dropped_or_negative_at_test(drop, solver):
    """Against a fit written out: the result differs from every other way to treat label 0."""
    x, y = weak_features(n=120)
    labels = y.copy()
    labels[np.flatnonzero(y == 1)[::4]] = 0  # a quarter of what looks positive is called difficult
    train, test = slice(0, 60), slice(60, 120)
    rule = SvmRule(costs=(0.5,), drop_difficult=drop)
    (score,) = svm_scores(x[train], labels[train, None], x[test], labels[test, None], rule, solver)

    rows = normalise_rows(x)
    svc = linear_svc(0.5, 0).fit(rows[train], np.where(labels[train] == 1, 1, -1))
    values, counted = svc.decision_function(rows[test]), (labels[test] != 0) | (not drop)
    assert score.ap == pytest.approx(average_precision((labels[test] == 1)[counted], values[counted]), abs=1e-12)

    as_positive = linear_svc(0.5, 0).fit(rows[train], np.where(labels[train] >= 0, 1, -1)).decision_function(rows[test])
    assert average_precision((labels[test] == 1)[counted], as_positive[counted]) != pytest.approx(score.ap, abs=1e-6)


def test_difficult_handling_moves_the_score():
    x, y = weak_features(n=120)
    labels = y.copy()
    labels[np.flatnonzero(y == 1)[::4]] = 0
    arguments = (x[:60], labels[:60, None], x[60:], labels[60:, None])
    kept, dropped = (svm_scores(*arguments, SvmRule((0.5,), drop), LIBLINEAR)[0].ap for drop in (False, True))
    assert dropped > kept + 0.01  # the difficult ones look positive: counted as negatives they rank too high


@BOTH
def test_unmeasurable_classes_are_nan_with_a_reason(solver):
    x, y = weak_features(n=30)
    never, twice, untested = np.full(30, -1), np.full(30, -1), y.copy()
    twice[[4, 9]] = 1
    labels = np.stack([y, never, twice, untested], axis=1)
    test_labels = labels.copy()
    test_labels[:, 3] = -1
    good, no_positive, too_few, no_test = svm_scores(x, labels, x, test_labels, SvmRule(COSTS, True), solver)
    assert not math.isnan(good.ap) and not good.not_measured
    assert math.isnan(no_positive.ap) and no_positive.not_measured.startswith("0 positive and 30 negative")
    assert math.isnan(too_few.ap) and "needs 3 of each" in too_few.not_measured
    assert math.isnan(no_test.ap) and no_test.not_measured == "no positive test image"
    assert not math.isnan(svm_scores(x, labels, x, test_labels, PCL, solver)[2].ap)  # two are enough without folds


def test_fits_that_do_not_converge_are_counted_and_not_printed(monkeypatch):
    import transfer.svm.liblinear as svm

    original = svm.linear_svc
    monkeypatch.setattr(svm, "linear_svc", lambda cost, seed: original(cost, seed).set_params(max_iter=1))
    x, y = weak_features()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        (score,) = svm_scores(x, y[:, None], x, y[:, None], SvmRule((1.0, 1000.0), True), LIBLINEAR)
    assert score.unconverged == 2 * 3 + 1
    assert svm_scores(x, y[:, None], x, y[:, None], SvmRule((0.01,), True), LIBLINEAR)[0].unconverged == 1


def test_converged_fits_count_nothing():
    x, y = weak_features()
    assert svm_scores(x, y[:, None], x, y[:, None], PCL, LIBLINEAR)[0].unconverged == 0


@pytest.mark.slow
def test_processes_change_nothing():
    x, y = weak_features()
    labels = np.stack([y, -y, np.roll(y, 1)], axis=1)
    rule = SvmRule((0.01, 1.0), True)
    assert svm_scores(x, labels, x, labels, rule, Solver("liblinear", jobs=2)) == svm_scores(
        x, labels, x, labels, rule, LIBLINEAR
    )


# the batched solver against the reference


def multi_label(n=240, d=60, classes=5, seed=0):
    """Rows with a falling spectrum, as features have, and classes of 8% to 40% that overlap with the noise."""
    generator = np.random.default_rng(seed)
    mixing = generator.standard_normal((d, d)) * np.arange(1, d + 1)[:, None] ** -0.7
    present = generator.random((2 * n, classes)) < np.geomspace(0.08, 0.4, classes)
    latent = generator.standard_normal((2 * n, d)) + 0.8 * present @ generator.standard_normal((classes, d))
    rows, labels = np.maximum(latent @ mixing, 0), np.where(present, 1, -1)
    return rows[:n], labels[:n], rows[n:], labels[n:]


@pytest.mark.parametrize("width", [60, 400], ids=["more rows than columns", "fewer"])
@pytest.mark.parametrize("cost", [0.01, 1.0, 1000.0])
def test_newton_finds_the_minimum_that_liblinear_approaches(width, cost):
    """Decisions equal a LinearSVC trained to 1e-10, whose own tolerance of 1e-4 is further away than we are."""
    train, labels, test, _ = multi_label(d=width)
    train, test = normalise_rows(train), normalise_rows(test)
    basis, y = eigenbasis(with_constant(train, "cpu")), torch.from_numpy(labels).double()
    start = torch.zeros(basis.features.shape[1], 5, dtype=torch.float64)
    costs = torch.full((5,), cost).double()
    solution = minimise(SharedFeatures(basis.features), y, class_weights(y).double(), costs, 1e-8, start)
    assert solution.converged.all()
    ours = with_constant(test, "cpu") @ basis.projection @ solution.u
    for c in range(5):
        svc = linear_svc(cost, 0).set_params(tol=1e-10, max_iter=10**6).fit(train, labels[:, c])
        np.testing.assert_allclose(ours[:, c].numpy(), svc.decision_function(test), atol=1e-5)


def test_both_ways_to_a_newton_step_solve_the_system():
    """(I + z' D z) step = -gradient, written out, for many and for few rows inside the margin."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 20, generator=generator, dtype=torch.float64)
    active = 3 * (torch.rand(50, 4, generator=generator) < 0.5).double()
    gradient = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    for solve, precision in (
        (lambda: direct_step(SharedFeatures(z), active, gradient), 1e-4),
        (lambda: cg_step(SharedFeatures(z), active, gradient), 0.1),
    ):
        step, change = solve()
        torch.testing.assert_close(change, z @ step)
        for p in range(4):
            left = (torch.eye(20) + z.T @ (active[:, p, None] * z)) @ step[:, p] + gradient[:, p]
            assert left.norm() <= precision * gradient[:, p].norm()


@pytest.mark.parametrize("seed", range(3))
def test_both_solvers_make_the_same_decisions(seed):
    """mAP within 0.05 points; the chosen C equal where the margin between Cs is more than that; tables alike."""
    problem, rule = multi_label(seed=seed), SvmRule((0.01, 0.1, 1.0, 10.0, 100.0), drop_difficult=True)
    ours, theirs = (svm_scores(*problem, rule, solver) for solver in (NEWTON, LIBLINEAR))
    assert abs(np.mean([a.ap for a in ours]) - np.mean([b.ap for b in theirs])) < 5e-4
    for a, b in zip(ours, theirs, strict=True):
        assert list(a.cross_validated) == list(b.cross_validated) == list(rule.costs)
        best, second = sorted(b.cross_validated.values())[:-3:-1]
        assert a.cost == b.cost or best - second < 5e-4
        np.testing.assert_allclose(list(a.cross_validated.values()), list(b.cross_validated.values()), atol=2e-3)
        assert a.unconverged == 0


def test_rows_outside_a_problem_do_not_matter():
    """Weight 0 is absence: a masked column equals the problem trained on its rows alone."""
    train, labels, _, _ = multi_label()
    train, inside = normalise_rows(train), np.random.default_rng(0).random(240) < 0.6
    basis, y = eigenbasis(with_constant(train, "cpu")), torch.from_numpy(labels[:, :1]).double()
    weight = class_weights(y).double() * torch.from_numpy(inside)[:, None]
    start, cost = torch.zeros(basis.features.shape[1], 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    masked = minimise(SharedFeatures(basis.features), y, weight, cost, 1e-9, start).decisions[~inside, 0]
    svc = linear_svc(1.0, 0).set_params(tol=1e-10, max_iter=10**6).fit(train[inside], labels[inside, 0])
    np.testing.assert_allclose(masked.numpy(), svc.decision_function(train[~inside]), atol=1e-6)


def test_folds_are_scikit_learns():
    _, y = weak_features()
    masks = fold_masks(np.stack([y, -np.roll(y, 1)], axis=1), 3)
    assert masks.sum(axis=1).tolist() == [[1, 1]] * 90
    for fold, (_, outside) in enumerate(StratifiedKFold(3).split(y, y)):
        np.testing.assert_array_equal(np.flatnonzero(masks[:, fold, 0]), outside)


def test_a_solver_that_stops_early_says_so(monkeypatch):
    monkeypatch.setattr("transfer.svm.newton_cg.NEWTON_STEPS", 1)
    x, y = weak_features()
    (score,) = svm_scores(x, y[:, None], x, y[:, None], SvmRule((1.0, 1000.0), True), NEWTON)
    assert score.unconverged == 2 * 3 + 1
