"""VOC07 with few labels: which images are drawn, and SVMs on each draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adco.evaluation.bootstrap import average_precision, mean_over_classes
from adco.evaluation.records import Score
from adco.utils.errors import UserError
from transfer.svm.protocols import LowShot
from transfer.svm.svm import Solver, SvmRule, counted_targets, decisions_by_cost, svm_scores


@dataclass(frozen=True)
class Draw:
    """One drawn training set of k shots.

    rows: (R,) images of trainval; labels: (R, C) of 1 and -1, and 0 where a class does not train on an image.
    """

    k: int
    sample: int
    rows: np.ndarray
    labels: np.ndarray


def draw(labels: np.ndarray, few: LowShot, seed: int) -> list[Draw]:
    """All draws of a protocol from trainval, by the seed alone. labels: (N, C) of 1 present, -1 absent, 0 difficult.

    Pooled: k images of each class with all their labels, difficult as negative; one drawn for two classes is in twice,
    as in PCL's code. Else: k of a class's positives and 19 k of its negatives (images that do not show it at all).
    Raises UserError when a class has too few images.
    """
    draws = []
    for k in few.shots:
        for sample in range(few.samples):
            generator = np.random.default_rng([seed, k, sample])
            draws.append(Draw(k, sample, *(_pooled if few.pooled else _by_class)(labels, k, generator)))
    return draws


def as_text(draws: list[Draw], ids: Sequence[str], classes: Sequence[str]) -> str:
    """One line per draw, class and side: `k sample CLASS +|- IMAGE ...`, enough to train on the same images again."""
    lines = []
    for drawn in draws:
        for c, name in enumerate(classes):
            for side, sign in ((1, "+"), (-1, "-")):
                images = " ".join(ids[row] for row in drawn.rows[drawn.labels[:, c] == side])
                lines.append(f"{drawn.k} {drawn.sample} {name} {sign} {images}\n")
    return "".join(lines)


def _pooled(labels: np.ndarray, k: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    columns = range(labels.shape[1])
    rows = np.concatenate([_some(labels[:, c] == 1, k, generator, f"{k} positives of class {c}") for c in columns])
    return rows, np.where(labels[rows] == 1, 1, -1)


def _by_class(labels: np.ndarray, k: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    drawn, classes = np.zeros(labels.shape, dtype=np.int64), labels.shape[1]
    for c in range(classes):
        drawn[_some(labels[:, c] == 1, k, generator, f"{k} positives of class {c}"), c] = 1
        negatives = (classes - 1) * k
        drawn[_some(labels[:, c] == -1, negatives, generator, f"{negatives} negatives of class {c}"), c] = -1
    rows = np.flatnonzero((drawn != 0).any(axis=1))
    return rows, drawn[rows]


def _some(candidates: np.ndarray, count: int, generator: np.random.Generator, what: str) -> np.ndarray:
    found = np.flatnonzero(candidates)
    if len(found) < count:
        raise UserError(f"low-shot needs {what}, trainval has {len(found)}; leave out large k with --shots")
    return generator.choice(found, count, replace=False)


def low_shot_scores(
    train: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    draws: list[Draw],
    few: LowShot,
    rule: SvmRule,
    solver: Solver,
) -> tuple[dict[str, Score], dict[str, object]]:
    """Test mAP in percent by k, over the draws, and what was chosen.

    train: (N, D) features of the images that the draws speak of; test: (M, D), with (M, C) labels.
    """
    scores, settings = {}, {}
    for k in few.shots:
        tables = [_by_cost(train, test, test_labels, d, few, rule, solver) for d in draws if d.k == k]
        if few.cost == "test":
            cost = max(rule.costs, key=lambda c: np.mean([table[c] for table in tables]))
            values = [table[cost] for table in tables]
            settings[f"k{k}/cost"] = cost
        else:
            values = [table[math.nan] for table in tables]
        scores[f"mAP/k{k}"] = Score.over_trials(values)
        settings[f"k{k}/trials"] = values
    return scores, settings


def _by_cost(train, test, test_labels, drawn: Draw, few: LowShot, rule: SvmRule, solver: Solver) -> dict[float, float]:
    """One draw's mAP in percent by cost; under NaN when there is one answer (a fixed or cross-validated cost)."""
    rows, labels = drawn.rows, drawn.labels
    if few.cost == "test":
        found = decisions_by_cost(train[rows], labels, test, rule, solver)
        return {cost: _map(values, test_labels, rule) for cost, values in found.items()}
    if few.pooled:  # all classes train on the same images
        found = svm_scores(train[rows], labels, test, test_labels, rule, solver)
        return {math.nan: 100 * mean_over_classes([score.ap for score in found])[0]}
    aps = []
    for c in range(labels.shape[1]):
        own, enough = labels[:, c] != 0, drawn.k >= rule.folds
        chosen = rule if enough else replace(rule, costs=(min(rule.costs),))
        (score,) = svm_scores(train[rows[own]], labels[own, c, None], test, test_labels[:, c, None], chosen, solver)
        aps.append(score.ap)
    return {math.nan: 100 * mean_over_classes(aps)[0]}


def _map(values: np.ndarray, labels: np.ndarray, rule: SvmRule) -> float:
    aps = []
    for c in range(labels.shape[1]):
        positive, counted = counted_targets(labels[:, c], rule.drop_difficult)
        aps.append(average_precision(positive[counted], values[counted, c]))
    return 100 * mean_over_classes(aps)[0]
