"""Linear SVMs on frozen features, one per class, as VISSL and PCL train them for VOC07."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import joblib
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

from adco.progress import progress
from transfer.metrics import average_precision


@dataclass(frozen=True)
class SvmRule:
    """What a protocol says of the classifier.

    costs: candidates for C; with more than one, each class takes that of the best mean AP over `folds` training folds.
    drop_difficult: leave label 0 out of a class's test; otherwise it is a negative there, as always in training.
    """

    costs: tuple[float, ...]
    drop_difficult: bool
    folds: int = 3
    random_state: int = 0


@dataclass(frozen=True)
class ClassScore:
    """One class's result: AP in [0, 1], NaN when it could not be measured, and then why."""

    ap: float
    cost: float = math.nan
    cross_validated: dict[float, float] = field(default_factory=dict)
    unconverged: int = 0
    why_not: str = ""


def normalise_rows(features: np.ndarray) -> np.ndarray:
    """(N, D) -> float64 rows x / (|x| + 1e-5): nearly unit rows, and zero rows stay zero."""
    features = np.asarray(features, dtype=np.float64)
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-5)


def linear_svc(cost: float, random_state: int) -> LinearSVC:
    """The classifier of both protocols: L2, squared hinge, dual, a positive weighing twice a negative."""
    return LinearSVC(
        C=cost,
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        class_weight={1: 2, -1: 1},
        intercept_scaling=1.0,
        tol=1e-4,
        max_iter=2000,
        random_state=random_state,
    )


def svm_scores(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray, rule: SvmRule, jobs: int
) -> list[ClassScore]:
    """Train and test one SVM per class.

    train: (N, D), test: (M, D) features as extracted (normalised here); labels: (N, C), (M, C) of 1 present, -1 absent,
    0 difficult. A class with too few training images to train or cross-validate, or no test image, is not measured.
    """
    train, test = normalise_rows(train), normalise_rows(test)
    targets = np.where(train_labels == 1, 1, -1)  # difficult is negative in training, in every protocol
    needed = rule.folds if len(rule.costs) > 1 else 1
    why_not = [why_unmeasured(targets[:, c], test_labels[:, c], needed) for c in range(targets.shape[1])]
    classes = [c for c, reason in enumerate(why_not) if not reason]

    tables, unconverged = {c: {} for c in classes}, dict.fromkeys(classes, 0)
    if len(rule.costs) > 1:
        tasks = [(c, cost) for c in classes for cost in rule.costs]
        calls = [(cross_validated_ap, train, targets[:, c], cost, rule.folds, rule.random_state) for c, cost in tasks]
        for (c, cost), (ap, count) in zip(tasks, _parallel(calls, jobs, "choosing C"), strict=True):
            tables[c][cost] = ap
            unconverged[c] += count
    costs = {c: best_cost(tables[c]) if tables[c] else rule.costs[0] for c in classes}

    scores = [ClassScore(math.nan, why_not=reason) for reason in why_not]
    calls = [(decisions, train, targets[:, c], test, costs[c], rule.random_state) for c in classes]
    for c, (values, count) in zip(classes, _parallel(calls, jobs, "training SVMs"), strict=True):
        positive, counted = counted_targets(test_labels[:, c], rule.drop_difficult)
        ap = average_precision(positive[counted], values[counted])
        scores[c] = ClassScore(ap, costs[c], tables[c], unconverged[c] + count)
    return scores


def cross_validated_ap(
    features: np.ndarray, targets: np.ndarray, cost: float, folds: int, random_state: int
) -> tuple[float, int]:
    """Mean of scikit-learn's average precision over unshuffled stratified folds, and how many fits did not converge."""
    svc = linear_svc(cost, random_state)
    return _counting_warnings(
        lambda: float(cross_val_score(svc, features, targets, cv=folds, scoring="average_precision").mean())
    )


def best_cost(table: dict[float, float]) -> float:
    """The cost of the largest mean AP; the first of equals, as numpy's argmax takes it."""
    return max(table, key=table.__getitem__)


def decisions(
    train: np.ndarray, targets: np.ndarray, test: np.ndarray, cost: float, random_state: int
) -> tuple[np.ndarray, int]:
    """Signed distances (M,) of the test rows, and 1 when the fit did not converge, else 0."""
    svc = linear_svc(cost, random_state)
    return _counting_warnings(lambda: svc.fit(train, targets).decision_function(test))


def counted_targets(labels: np.ndarray, drop_difficult: bool) -> tuple[np.ndarray, np.ndarray]:
    """(M,) of 1, 0, -1 -> which images are positive, and which are counted at all."""
    counted = labels != 0 if drop_difficult else np.ones(len(labels), dtype=bool)
    return labels == 1, counted


def why_unmeasured(targets: np.ndarray, test_labels: np.ndarray, needed: int) -> str:
    """Why a class cannot be measured, or "" when it can. needed: training images wanted on either side."""
    positives, negatives = int((targets == 1).sum()), int((targets == -1).sum())
    if min(positives, negatives) < needed:
        folds = f", cross-validation needs {needed} of each" if needed > 1 else ""
        return f"{positives} positive and {negatives} negative training images{folds}"
    return "" if (test_labels == 1).any() else "no positive test image"


def _parallel(calls: Sequence[tuple], jobs: int, title: str) -> Iterable:
    """The results of `(function, *arguments)` calls in order, computed in `jobs` processes, with progress."""
    run = joblib.Parallel(n_jobs=min(jobs, max(1, len(calls))), return_as="generator")
    with progress(len(calls), title, "fits") as bar:
        for result in run(joblib.delayed(call[0])(*call[1:]) for call in calls):
            bar.update()
            yield result


def _counting_warnings(work: Callable[[], object]) -> tuple[object, int]:
    """The result of `work()` and how many ConvergenceWarnings it gave; other warnings are passed on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return result, len(caught) - len(others)
