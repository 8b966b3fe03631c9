"""VOC07 with few labels: which images are drawn, and SVMs on each draw."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adco.evaluation.average_precision import average_precision
from adco.evaluation.bootstrap import mean_over_classes
from adco.evaluation.records import Score
from adco.utils.errors import UserError
from transfer.svm.protocols import LowShot
from transfer.svm.svm import Solver, SvmRule, counted_targets, decisions_by_cost, svm_scores


@dataclass(frozen=True)
class Draw:
    """One drawn training set.

    Attributes:
        k: positives per class.
        sample: number of the draw among those of this k.
        images: (R,) positions in trainval.
        labels: (R, C) of 1 and -1, and 0 where a class does not train on an image.
    """

    k: int
    sample: int
    images: np.ndarray
    labels: np.ndarray


def draw(labels: np.ndarray, few: LowShot, seed: int) -> list[Draw]:
    """Draw all training sets of a protocol from trainval; the seed alone determines them.

    Pooled: k images of each class with all their labels, difficult as negative; an image drawn for two classes is in
    the set twice, as in PCL's code. Else: k of a class's positives and 19 k of its negatives, which do not show the
    class at all.

    Args:
        labels: (N, C) of 1 present, -1 absent, 0 difficult.
        few: values of k and the number of draws.
        seed: of the draws.

    Raises:
        UserError: a class has too few images.
    """
    draws = []
    for k in few.shots:
        for sample in range(few.samples):
            generator = np.random.default_rng([seed, k, sample])
            draws.append(Draw(k, sample, *(_pooled if few.pooled else _by_class)(labels, k, generator)))
    return draws


def as_text(draws: list[Draw], ids: Sequence[str], classes: Sequence[str]) -> str:
    """Write one line per draw, class and side: `k sample CLASS +|- IMAGE ...`; it names every training image.

    Args:
        draws: the training sets.
        ids: the names of trainval's images.
        classes: the names of the C classes.
    """
    lines = []
    for drawn in draws:
        for c, name in enumerate(classes):
            for side, sign in ((1, "+"), (-1, "-")):
                images = " ".join(ids[int(image)] for image in drawn.images[drawn.labels[:, c] == side])
                lines.append(f"{drawn.k} {drawn.sample} {name} {sign} {images}\n")
    return "".join(lines)


def _pooled(labels: np.ndarray, k: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    columns = range(labels.shape[1])
    images = [_sample(labels[:, c] == 1, k, generator, f"{k} positives of class {c}") for c in columns]
    drawn = np.concatenate(images)
    return drawn, np.where(labels[drawn] == 1, 1, -1)


def _by_class(labels: np.ndarray, k: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    drawn, classes = np.zeros(labels.shape, dtype=np.int64), labels.shape[1]
    for c in range(classes):
        drawn[_sample(labels[:, c] == 1, k, generator, f"{k} positives of class {c}"), c] = 1
        negatives = (classes - 1) * k
        drawn[_sample(labels[:, c] == -1, negatives, generator, f"{negatives} negatives of class {c}"), c] = -1
    images = np.flatnonzero((drawn != 0).any(axis=1))
    return images, drawn[images]


def _sample(candidates: np.ndarray, count: int, generator: np.random.Generator, what: str) -> np.ndarray:
    """Draw `count` positions at which `candidates` (N,) is true, without replacement."""
    positions = np.flatnonzero(candidates)
    if len(positions) < count:
        raise UserError(f"low-shot needs {what}, trainval has {len(positions)}; leave out large k with --shots")
    return generator.choice(positions, count, replace=False)


def low_shot_scores(
    train: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    draws: list[Draw],
    few: LowShot,
    rule: SvmRule,
    solver: Solver,
) -> tuple[dict[str, Score], dict[str, object]]:
    """Train and test on every draw.

    Args:
        train: (N, D) features of trainval's images.
        test: (M, D) features.
        test_labels: (M, C) of 1 present, -1 absent, 0 difficult.
        draws: the training sets.
        few: values of k, and how C is chosen.
        rule: costs and the treatment of difficult images.
        solver: how to fit.

    Returns:
        `mAP/kK`, the test mAP in percent over the draws of each k, and settings: each draw's mAP and, where the test
        chose it, the cost.
    """
    scores, settings = {}, {}
    for k in few.shots:
        tables = [_by_cost(train, test, test_labels, d, few, rule, solver) for d in draws if d.k == k]
        if few.cost == "test":
            cost = max(rule.costs, key=lambda c: float(np.mean([table[c] for table in tables])))
            values = [table[cost] for table in tables]
            settings[f"k{k}/cost"] = cost
        else:
            values = [table[math.nan] for table in tables]
        scores[f"mAP/k{k}"] = Score.over_trials(values)
        settings[f"k{k}/trials"] = values
    return scores, settings


def _by_cost(
    train: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    drawn: Draw,
    few: LowShot,
    rule: SvmRule,
    solver: Solver,
) -> dict[float, float]:
    """One draw's mAP in percent by cost; under NaN when there is one answer (a fixed or cross-validated cost)."""
    images, labels = drawn.images, drawn.labels
    if few.cost == "test":
        by_cost = decisions_by_cost(train[images], labels, test, rule, solver)
        return {cost: _mean_ap(values, test_labels, rule) for cost, values in by_cost.items()}
    if few.pooled:  # all classes train on the same images
        scores = svm_scores(train[images], labels, test, test_labels, rule, solver)
        return {math.nan: 100 * mean_over_classes([score.ap for score in scores])[0]}
    aps = []
    for c in range(labels.shape[1]):
        own, enough = labels[:, c] != 0, drawn.k >= rule.folds
        class_rule = rule if enough else replace(rule, costs=(min(rule.costs),))
        (score,) = svm_scores(
            train[images[own]], labels[own, c, None], test, test_labels[:, c, None], class_rule, solver
        )
        aps.append(score.ap)
    return {math.nan: 100 * mean_over_classes(aps)[0]}


def _mean_ap(values: np.ndarray, labels: np.ndarray, rule: SvmRule) -> float:
    """mAP in percent of decisions (M, C)."""
    aps = []
    for c in range(labels.shape[1]):
        positive, counted = counted_targets(labels[:, c], rule.drop_difficult)
        aps.append(average_precision(positive[counted], values[counted, c]))
    return 100 * mean_over_classes(aps)[0]
