"""The reference solver: scikit-learn's LinearSVC, one fit after another, in processes that do not import torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import joblib
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from adco.evaluation.average_precision import step_average_precision
from adco.utils.progress import progress

POSITIVE_WEIGHT = 2.0  # the protocols' class weights are {1: 2, -1: 1}
T = TypeVar("T")


def linear_svc(cost: float, random_state: int) -> LinearSVC:
    """Make the classifier of all SVM protocols: L2, squared hinge, dual, a positive weighs twice a negative."""
    return LinearSVC(
        C=cost,
        penalty="l2",
        loss="squared_hinge",
        dual=True,  # pyright: ignore[reportArgumentType]  (inferred as str from its default "auto")
        class_weight={1: POSITIVE_WEIGHT, -1: 1},
        intercept_scaling=1,
        tol=1e-4,
        max_iter=2000,
        random_state=random_state,
    )


def fit(
    train: np.ndarray,
    targets: np.ndarray,
    test: np.ndarray,
    costs: Sequence[float],
    folds: int,
    random_state: int,
    jobs: int,
) -> tuple[list[dict[float, float]], np.ndarray, np.ndarray]:
    """Choose each class's cost and fit it, one class and cost a task, as `svm.fit_newton` does it for all at once.

    Args:
        train: (N, D) normalised features.
        targets: (N, C) of 1 and -1.
        test: (M, D) normalised features.
        costs: candidates; with more than one, each class takes that of the best cross-validated AP.
        folds: of the cross-validation.
        random_state: seed of LinearSVC.
        jobs: processes.

    Returns:
        A table cost -> mean AP per class ([] with one cost), decisions (M, C), and how many fits of each class (C,) did
        not converge.
    """
    classes, tables = range(targets.shape[1]), []
    unconverged = np.zeros(len(classes), dtype=int)
    if len(costs) > 1:
        tables = [{} for _ in classes]
        tasks = [(c, cost) for c in classes for cost in costs]
        calls = [(cross_validated_ap, train, targets[:, c], cost, folds, random_state) for c, cost in tasks]
        for (c, cost), (ap, count) in zip(tasks, _parallel(calls, jobs, "choosing C"), strict=True):
            tables[c][cost] = ap
            unconverged[c] += count
    chosen = [best_cost(tables[c]) if tables else costs[0] for c in classes]
    calls = [(decisions, train, targets[:, c], test, chosen[c], random_state) for c in classes]
    columns = []
    for c, (values, count) in zip(classes, _parallel(calls, jobs, "training SVMs"), strict=True):
        columns.append(values)
        unconverged[c] += count
    return tables, np.stack(columns, axis=1), unconverged


def cross_validated_ap(
    features: np.ndarray, targets: np.ndarray, cost: float, folds: int, random_state: int
) -> tuple[float, int]:
    """Cross-validate one class at one cost over unshuffled stratified folds.

    Args:
        features: (N, D) normalised features.
        targets: (N,) of 1 and -1.
        cost: C of the SVM.
        folds: their number.
        random_state: seed of LinearSVC.

    Returns:
        The mean over folds of scikit-learn's average precision, and how many fits did not converge.
    """
    aps, unconverged = [], 0
    for inside, outside in StratifiedKFold(folds).split(features, targets):
        values, count = decisions(features[inside], targets[inside], features[outside], cost, random_state)
        aps.append(step_average_precision(targets[outside] == 1, values))
        unconverged += count
    return float(np.mean(aps)), unconverged


def one_by_one(train: np.ndarray, labels: np.ndarray, test: np.ndarray, cost: float, random_state: int) -> np.ndarray:
    """Fit one SVM per class, each on its own images.

    Args:
        train: (N, D) normalised features.
        labels: (N, C) of 1 and -1, and 0 for images that a class does not train on.
        test: (M, D) normalised features.
        cost: C of the SVMs.
        random_state: seed of LinearSVC.

    Returns:
        (M, C) decisions.
    """
    columns = []
    for column in labels.T:
        own = column != 0
        columns.append(decisions(train[own], column[own], test, cost, random_state)[0])
    return np.stack(columns, axis=1)


def best_cost(table: Mapping[float, float]) -> float:
    """The cost of the largest mean AP; of equal ones the first, as numpy's argmax takes it."""
    return max(table, key=table.__getitem__)


def decisions(
    train: np.ndarray, targets: np.ndarray, test: np.ndarray, cost: float, random_state: int
) -> tuple[np.ndarray, int]:
    """Fit one SVM.

    Args:
        train: (N, D) normalised features.
        targets: (N,) of 1 and -1.
        test: (M, D) normalised features.
        cost: C of the SVM.
        random_state: seed of LinearSVC.

    Returns:
        Signed distances (M,) of the test features, and 1 when the fit did not converge, else 0.
    """
    svc = linear_svc(cost, random_state)
    return _counting_warnings(lambda: svc.fit(train, targets).decision_function(test))


def _parallel(calls: Sequence[tuple], jobs: int, title: str) -> Iterator:
    """The results of `(function, *arguments)` calls in order, computed in `jobs` processes, with progress."""
    run = joblib.Parallel(n_jobs=min(jobs, max(1, len(calls))), return_as="generator")
    with progress(len(calls), title, "fits") as bar:
        for result in run(joblib.delayed(call[0])(*call[1:]) for call in calls):
            bar.update()
            yield result


def _counting_warnings(work: Callable[[], T]) -> tuple[T, int]:
    """The result of `work()` and how many ConvergenceWarnings it gave; other warnings are passed on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    others = [w for w in caught if not issubclass(w.category, ConvergenceWarning)]
    for warning in others:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return result, len(caught) - len(others)
