"""Linear SVMs on frozen features, one per class, as VISSL and PCL train them for VOC07.

Two solvers of one convex problem: `newton` (newton_cg.py: all classes, folds and costs at once) and `liblinear`
(liblinear.py: scikit-learn's LinearSVC, one fit at a time, the reference).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from adco.evaluation.average_precision import average_precision, step_average_precision
from adco.utils.progress import progress
from transfer.svm import liblinear
from transfer.svm.liblinear import POSITIVE_WEIGHT, best_cost
from transfer.svm.newton_cg import SharedFeatures, eigenbasis, minimise, path

CV_TOLERANCE, FIT_TOLERANCE = 2e-3, 1e-6  # bounds of the weights' relative error, in float32 and in float64


@dataclass(frozen=True)
class SvmRule:
    """A protocol's classifier.

    Attributes:
        costs: candidates for C; with more than one, each class takes that of the best mean AP over `folds` training
            folds.
        drop_difficult: leave difficult images (label 0) out of a class's test; else they are negatives there. In
            training they are always negatives.
        folds: of the cross-validation.
        random_state: the seed of LinearSVC.
    """

    costs: tuple[float, ...]
    drop_difficult: bool
    folds: int = 3
    random_state: int = 0

    @property
    def cross_validates(self) -> bool:
        """Whether C is chosen by cross-validation."""
        return len(self.costs) > 1


@dataclass(frozen=True)
class ClassScore:
    """The result of one class.

    Attributes:
        ap: average precision in [0, 1], NaN when it could not be measured.
        cost: the chosen C, NaN when nothing was fitted.
        cross_validated: mean AP by cost, empty with one cost.
        unconverged: how many fits did not converge.
        not_measured: why the class could not be measured, else "".
        decisions: (M,) signed distances of all test images, None when nothing was fitted.
    """

    ap: float
    cost: float = math.nan
    cross_validated: dict[float, float] = field(default_factory=dict)
    unconverged: int = 0
    not_measured: str = ""
    decisions: np.ndarray | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Solver:
    """How SVMs are fitted.

    Attributes:
        name: `newton` or `liblinear`.
        jobs: processes of liblinear.
        device: where newton computes.
    """

    name: str = "newton"
    jobs: int = 1
    device: torch.device = torch.device("cpu")


def normalise_rows(features: np.ndarray) -> np.ndarray:
    """Normalise features (N, D) to x / (|x| + 1e-5), float64: nearly unit length, and zeros stay zeros."""
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

    A class is not measured when it has too few training images to train or cross-validate, or no positive test image.

    Args:
        train: (N, D) features as extracted; they are normalised here.
        train_labels: (N, C) of 1 present, -1 absent, 0 difficult.
        test: (M, D) features as extracted.
        test_labels: (M, C) of 1 present, -1 absent, 0 difficult.
        rule: costs and the treatment of difficult images.
        solver: how to fit.

    Returns:
        C results.
    """
    train, test = normalise_rows(train), normalise_rows(test)
    targets = np.where(train_labels == 1, 1, -1)  # difficult is negative in training, in every protocol
    needed = rule.folds if rule.cross_validates else 1
    reasons = [why_unmeasured(targets[:, c], test_labels[:, c], needed) for c in range(targets.shape[1])]
    classes = [c for c, reason in enumerate(reasons) if not reason]
    scores = [ClassScore(math.nan, not_measured=reason) for reason in reasons]
    if not classes:
        return scores
    if solver.name == "liblinear":
        more = (rule.costs, rule.folds, rule.random_state, solver.jobs)
        tables, values, unconverged = liblinear.fit(train, targets[:, classes], test, *more)
    else:
        tables, values, unconverged = fit_newton(train, targets[:, classes], test, rule, solver.device)
    for column, c in enumerate(classes):
        positive, counted = counted_targets(test_labels[:, c], rule.drop_difficult)
        ap = float(average_precision(positive[counted], values[counted, column]))
        table = tables[column] if tables else {}
        cost = best_cost(table) if tables else rule.costs[0]
        scores[c] = ClassScore(ap, cost, table, int(unconverged[column]), "", values[:, column])
    return scores


def fit_newton(
    train: np.ndarray, targets: np.ndarray, test: np.ndarray, rule: SvmRule, device: torch.device
) -> tuple[list[dict[float, float]], np.ndarray, np.ndarray]:
    """Cross-validate all classes and folds at once in float32, then fit the chosen costs in float64.

    Args:
        train: (N, D) normalised features.
        targets: (N, C) of 1 and -1.
        test: (M, D) normalised features.
        rule: costs and folds.
        device: where to compute.

    Returns:
        A table cost -> mean AP per class ([] with one cost), decisions (M, C), and how many fits of each class (C,) did
        not converge.
    """
    basis = eigenbasis(with_constant(train, device))
    shared = SharedFeatures(basis.features)
    y, tables, start = torch.from_numpy(targets).to(device), [], None
    unconverged = np.zeros(targets.shape[1], dtype=int)
    if rule.cross_validates:
        tables, weights, unconverged = cross_validate(shared, targets, rule)
        # start from the mean of the folds' weights at the chosen cost: (R, C)
        chosen = [sorted(rule.costs).index(best_cost(table)) for table in tables]
        start = torch.stack([weights[at][:, :, c].mean(dim=1) for c, at in enumerate(chosen)], dim=1).double()
    costs = [best_cost(table) for table in tables] or [rule.costs[0]] * targets.shape[1]
    start = basis.features.new_zeros(basis.features.shape[1], len(costs)) if start is None else start
    weight = class_weights(y).double()
    solution = minimise(shared, y.double(), weight, basis.features.new_tensor(costs), FIT_TOLERANCE, start)
    # decisions on the test images: (M, C)
    values = with_constant(test, device) @ (basis.projection @ solution.u)
    return tables, values.cpu().numpy(), unconverged + (~solution.converged.cpu().numpy())


def cross_validate(
    shared: SharedFeatures, targets: np.ndarray, rule: SvmRule
) -> tuple[list[dict[float, float]], list[Tensor], np.ndarray]:
    """Cross-validate over unshuffled stratified folds, with one batch of all classes and folds per cost.

    Args:
        shared: the training features (N, R).
        targets: (N, C) of 1 and -1.
        rule: costs and folds.

    Returns:
        A table cost -> mean AP per class, in the rule's order; the weights (R, folds, C) of each cost, in ascending
        order; and how many fits of each class (C,) did not converge.
    """
    classes, ascending, device = targets.shape[1], sorted(rule.costs), shared.z.device
    outside = fold_masks(targets, rule.folds)  # (N, folds, C)
    # one problem per fold and class: (N, folds * C)
    inside = torch.from_numpy(~outside).to(device).flatten(1)
    y = torch.from_numpy(targets).to(device)[:, None, :].expand(-1, rule.folds, -1).flatten(1).float()
    with progress(len(ascending) * torch.get_num_threads(), "choosing C", "steps") as bar:
        single = SharedFeatures(shared.z.float(), shared.gram)
        solutions = path(single, y, class_weights(y) * inside, ascending, CV_TOLERANCE, bar.update)
    tables, weights, unconverged = [{} for _ in range(classes)], [], np.zeros(classes, dtype=int)
    for cost, solution in zip(ascending, solutions, strict=True):
        values = solution.decisions.cpu().numpy().reshape(-1, rule.folds, classes)
        for c in range(classes):
            # the AP of each fold on its held-out images, averaged
            held = [outside[:, fold, c] for fold in range(rule.folds)]
            aps = [step_average_precision(targets[h, c] == 1, values[h, f, c]) for f, h in enumerate(held)]
            tables[c][cost] = float(np.mean(aps))
        weights.append(solution.u.reshape(-1, rule.folds, classes))
        unconverged += (~solution.converged.cpu().numpy()).reshape(rule.folds, classes).sum(axis=0)
    return [{cost: table[cost] for cost in rule.costs} for table in tables], weights, unconverged


def decisions_by_cost(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, rule: SvmRule, solver: Solver
) -> dict[float, np.ndarray]:
    """Fit every class at every cost, in float64; `newton` fits all classes at once, each cost from the one before it.

    Args:
        train: (N, D) features as extracted.
        labels: (N, C) of 1 and -1, and 0 for images that a class does not train on.
        test: (M, D) features as extracted.
        rule: the costs.
        solver: how to fit.

    Returns:
        cost -> decisions (M, C) of the test images.
    """
    train, test = normalise_rows(train), normalise_rows(test)
    if solver.name == "liblinear":
        return {cost: liblinear.one_by_one(train, labels, test, cost, rule.random_state) for cost in rule.costs}
    basis, y = eigenbasis(with_constant(train, solver.device)), torch.from_numpy(labels).to(solver.device).double()
    weight, projected = class_weights(y).double() * (y != 0), with_constant(test, solver.device) @ basis.projection
    ascending = sorted(rule.costs)
    solutions = path(SharedFeatures(basis.features), y, weight, ascending, FIT_TOLERANCE)
    values = {cost: (projected @ s.u).cpu().numpy() for cost, s in zip(ascending, solutions, strict=True)}
    return {cost: values[cost] for cost in rule.costs}


def fold_masks(targets: np.ndarray, folds: int) -> np.ndarray:
    """Compute which samples each fold holds out, as scikit-learn's unshuffled stratified folds do.

    Args:
        targets: (N, C) of 1 and -1.
        folds: their number.

    Returns:
        (N, folds, C) bool.
    """
    masks = np.zeros((len(targets), folds, targets.shape[1]), dtype=bool)
    for c in range(targets.shape[1]):
        for fold, (_, outside) in enumerate(StratifiedKFold(folds).split(targets, targets[:, c])):
            masks[outside, fold, c] = True
    return masks


def with_constant(features: np.ndarray, device: torch.device) -> Tensor:
    """Append a column of 1 to features (N, D): (N, D + 1) float64. Its weight is LinearSVC's penalised intercept."""
    x = torch.from_numpy(np.asarray(features, dtype=np.float64)).to(device)
    return torch.cat([x, x.new_ones(len(x), 1)], dim=1)


def class_weights(y: Tensor) -> Tensor:
    """The weight of each sample, in the shape of y: 2 for a positive, 1 for a negative."""
    return torch.where(y > 0, POSITIVE_WEIGHT, 1.0)


def counted_targets(labels: np.ndarray, drop_difficult: bool) -> tuple[np.ndarray, np.ndarray]:
    """From labels (M,) of 1, 0 and -1 compute (M,) bool: which images are positive, and which are counted at all."""
    counted = labels != 0 if drop_difficult else np.ones(len(labels), dtype=bool)
    return labels == 1, counted


def why_unmeasured(targets: np.ndarray, test_labels: np.ndarray, needed: int) -> str:
    """Say why a class cannot be measured, "" when it can.

    Args:
        targets: (N,) of 1 and -1.
        test_labels: (M,) of 1, 0 and -1.
        needed: how many positives and how many negatives training needs.
    """
    positives, negatives = int((targets == 1).sum()), int((targets == -1).sum())
    if min(positives, negatives) < needed:
        folds = f", cross-validation needs {needed} of each" if needed > 1 else ""
        return f"{positives} positive and {negatives} negative training images{folds}"
    return "" if (test_labels == 1).any() else "no positive test image"
