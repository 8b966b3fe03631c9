"""Linear SVMs on frozen features, one per class, as VISSL and PCL train them for VOC07.

Two solvers of one convex problem: `newton` (all classes, folds and costs at once, newton_cg.py) and `liblinear`
(liblinear.py, scikit-learn's LinearSVC one fit at a time: the reference).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold

from adco.evaluation.bootstrap import average_precision, step_average_precision
from adco.utils.progress import progress
from transfer.svm import liblinear
from transfer.svm.liblinear import POSITIVE_WEIGHT, best_cost
from transfer.svm.newton_cg import Rows, eigenbasis, minimise, path

CV_TOLERANCE, FIT_TOLERANCE = 2e-3, 1e-6  # bounds of the relative error of the weights; in float32 and float64


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
    """One class's result: AP in [0, 1], NaN when it could not be measured, and then why.

    decisions: (M,) signed distances of all test rows.
    """

    ap: float
    cost: float = math.nan
    cross_validated: dict[float, float] = field(default_factory=dict)
    unconverged: int = 0
    why_not: str = ""
    decisions: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Solver:
    """name: newton or liblinear; jobs: processes of liblinear; device: where newton computes."""

    name: str = "newton"
    jobs: int = 1
    device: torch.device = torch.device("cpu")


def normalise_rows(features: np.ndarray) -> np.ndarray:
    """(N, D) -> float64 rows x / (|x| + 1e-5): nearly unit rows, and zero rows stay zero."""
    features = np.asarray(features, dtype=np.float64)
    return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-5)


def svm_scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    rule: SvmRule,
    solver: Solver = Solver(),  # noqa: B008
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
    scores = [ClassScore(math.nan, why_not=reason) for reason in why_not]
    if not classes:
        return scores
    if solver.name == "liblinear":
        more = (rule.costs, rule.folds, rule.random_state, solver.jobs)
        tables, values, unconverged = liblinear.fit(train, targets[:, classes], test, *more)
    else:
        tables, values, unconverged = fit_newton(train, targets[:, classes], test, rule, solver.device)
    for at, c in enumerate(classes):
        positive, counted = counted_targets(test_labels[:, c], rule.drop_difficult)
        ap = average_precision(positive[counted], values[counted, at])
        cost = best_cost(tables[at]) if tables else rule.costs[0]
        scores[c] = ClassScore(ap, cost, tables[at] if tables else {}, int(unconverged[at]), "", values[:, at])
    return scores


def fit_newton(train: np.ndarray, targets: np.ndarray, test: np.ndarray, rule: SvmRule, device: torch.device):
    """Cross-validate in float32, all classes and folds at once along the costs, then fit the chosen models in float64.

    train: (N, D), test: (M, D) normalised rows; targets: (N, C) of 1 and -1. Returns the tables cost -> mean AP per
    class ([] with one cost), decisions (M, C), and how many fits per class did not converge.
    """
    basis = eigenbasis(with_constant(train, device))
    rows = Rows(basis.rows)
    y, tables, start = torch.from_numpy(targets).to(device), [], None
    unconverged = np.zeros(targets.shape[1], dtype=int)
    if len(rule.costs) > 1:
        tables, weights, unconverged = cross_validate(rows, targets, rule)
        chosen = [sorted(rule.costs).index(best_cost(table)) for table in tables]
        start = torch.stack([weights[at][:, :, c].mean(dim=1) for c, at in enumerate(chosen)], dim=1).double()
    costs = [best_cost(table) for table in tables] or [rule.costs[0]] * targets.shape[1]
    start = basis.rows.new_zeros(basis.rows.shape[1], len(costs)) if start is None else start
    weight = class_weights(y).double()
    found = minimise(rows, y.double(), weight, basis.rows.new_tensor(costs), FIT_TOLERANCE, start)
    values = with_constant(test, device) @ (basis.back @ found.u)
    return tables, values.cpu().numpy(), unconverged + (~found.converged.cpu().numpy())


def cross_validate(rows: Rows, targets: np.ndarray, rule: SvmRule):
    """Mean AP per class and cost over unshuffled stratified folds: one batch of classes x folds per cost.

    Returns tables (cost -> mean AP, one a class, in the rule's order), the weights (R, folds, C) of each cost in
    ascending order, and the number of fits per class that did not converge.
    """
    classes, ascending, device = targets.shape[1], sorted(rule.costs), rows.z.device
    outside = fold_masks(targets, rule.folds)  # (N, folds, C)
    inside = torch.from_numpy(~outside).to(device).flatten(1)
    y = torch.from_numpy(targets).to(device)[:, None, :].expand(-1, rule.folds, -1).flatten(1).float()
    with progress(len(ascending) * torch.get_num_threads(), "choosing C", "steps") as bar:
        shared = Rows(rows.z.float(), rows.gram)
        solutions = path(shared, y, class_weights(y) * inside, ascending, CV_TOLERANCE, bar.update)
    tables, weights, unconverged = [{} for _ in range(classes)], [], np.zeros(classes, dtype=int)
    for cost, found in zip(ascending, solutions, strict=True):
        values = found.decisions.cpu().numpy().reshape(-1, rule.folds, classes)
        for c in range(classes):
            held = [outside[:, fold, c] for fold in range(rule.folds)]
            aps = [step_average_precision(targets[h, c] == 1, values[h, f, c]) for f, h in enumerate(held)]
            tables[c][cost] = float(np.mean(aps))
        weights.append(found.u.reshape(-1, rule.folds, classes))
        unconverged += (~found.converged.cpu().numpy()).reshape(rule.folds, classes).sum(axis=0)
    return [{cost: table[cost] for cost in rule.costs} for table in tables], weights, unconverged


def decisions_by_cost(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, rule: SvmRule, solver: Solver
) -> dict[float, np.ndarray]:
    """cost -> decisions (M, C) of the test rows. labels: (N, C) of 1 and -1, 0 for rows that a class does not train on.

    In float64, all classes at once along the costs; with `liblinear` one fit after another.
    """
    train, test = normalise_rows(train), normalise_rows(test)
    if solver.name == "liblinear":
        return {cost: liblinear.one_by_one(train, labels, test, cost, rule.random_state) for cost in rule.costs}
    basis, y = eigenbasis(with_constant(train, solver.device)), torch.from_numpy(labels).to(solver.device).double()
    weight, turned = class_weights(y).double() * (y != 0), with_constant(test, solver.device) @ basis.back
    ascending = sorted(rule.costs)
    found = path(Rows(basis.rows), y, weight, ascending, FIT_TOLERANCE)
    values = {cost: (turned @ solution.u).cpu().numpy() for cost, solution in zip(ascending, found, strict=True)}
    return {cost: values[cost] for cost in rule.costs}


def fold_masks(targets: np.ndarray, folds: int) -> np.ndarray:
    """(N, C) of 1 and -1 -> (N, folds, C) bool, the rows held out: scikit-learn's unshuffled stratified folds."""
    masks = np.zeros((len(targets), folds, targets.shape[1]), dtype=bool)
    for c in range(targets.shape[1]):
        for fold, (_, outside) in enumerate(StratifiedKFold(folds).split(targets, targets[:, c])):
            masks[outside, fold, c] = True
    return masks


def with_constant(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """(N, D) -> (N, D + 1) float64 with a last column of 1, whose weight is LinearSVC's (penalised) intercept."""
    rows = torch.from_numpy(np.asarray(rows, dtype=np.float64)).to(device)
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def class_weights(y: torch.Tensor) -> torch.Tensor:
    """How much each row counts: 2 for a positive, 1 for a negative."""
    return torch.where(y > 0, POSITIVE_WEIGHT, 1.0)


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
