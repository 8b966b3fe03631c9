"""VOC07's SVM protocol `vissl` by the batched Newton solver against scikit-learn's LinearSVC loop, in the same run.

    python benchmarks/run.py svm [--quick]

Full size is that of VOC2007: 5011 x 2048 features, 20 classes, 3 folds, 11 costs (660 fits to choose C, 20 to keep).
It takes several minutes; LinearSVC runs once, between two runs of ours. The features are generated with the spectrum
and the class frequencies of real ones.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np

from adco.evaluation.bootstrap import mean_over_classes
from benchmarks.speed.race import Options, Outcome, Ratio, Timing, race, ratio
from transfer.svm.protocols import VISSL_COSTS
from transfer.svm.svm import ClassScore, Solver, SvmRule, svm_scores

FULL = {"train_images": 5011, "test_images": 1000, "width": 2048, "classes": 20}
QUICK = {"train_images": 800, "test_images": 400, "width": 256, "classes": 8}
GOAL, QUICK_GOAL = 10.0, 1.5


def generated(train_images: int, test_images: int, width: int, classes: int, seed: int = 0):
    """Generate features like a ResNet's pooled ones, and labels like VOC's.

    A power-law spectrum under a ReLU (two fifths of the entries are zero), and 2% to 40% of positives per class.

    Returns:
        Features (N, D) float32 and labels (N, C) of 1 and -1 to train on, then the same to test on.
    """
    generator = np.random.default_rng(seed)
    count, rank = train_images + test_images, 256
    spectrum = np.arange(1, rank + 1) ** -0.5
    mixing = generator.standard_normal((rank, width)) * (spectrum / np.linalg.norm(spectrum))[:, None]
    frequency = np.geomspace(0.02, 0.4, classes)
    present = generator.random((count, classes)) < frequency
    strength = generator.uniform(0.2, 0.6, (classes, 1))
    means = strength * generator.standard_normal((classes, rank))
    latent = generator.standard_normal((count, rank)) + present @ means
    features = np.maximum(latent @ mixing + 0.5 * generator.standard_normal((count, width)) - 0.2, 0)
    features, labels = features.astype(np.float32), np.where(present, 1, -1)
    return features[:train_images], labels[:train_images], features[train_images:], labels[train_images:]


def run(options: Options) -> Outcome:
    """Run both solvers on one generated problem: time, memory, and the differences of their results."""
    sizes, rule = QUICK if options.quick else FULL, SvmRule(VISSL_COSTS, drop_difficult=True)
    problem, found = generated(**sizes), {}

    def contestant(solver: Solver) -> Callable[[], None]:
        return lambda: found.update({solver.name: svm_scores(*problem, rule, solver)})

    newton, liblinear = contestant(Solver(device=options.device)), contestant(Solver("liblinear", 1))
    if options.quick:
        timings = race({"newton": newton, "liblinear": liblinear}, options.rounds, device=options.device)
        ratios = [ratio("svm/newton-vs-liblinear-quick", timings["liblinear"], timings["newton"], QUICK_GOAL)]
    else:
        ours, theirs, again = timed(newton), timed(liblinear), timed(newton)
        timings = {"newton": Timing("newton", (ours, again)), "liblinear": Timing("liblinear", (theirs,))}
        ratios = [Ratio("svm/newton-vs-liblinear", theirs / statistics.mean((ours, again)), GOAL)]
    settings = {**sizes, "costs": VISSL_COSTS, "folds": rule.folds}
    scores = agreement(found["newton"], found["liblinear"])
    # the peak holds the features, both solvers' copies of them, and torch
    scores["peak_MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Outcome("protocol", list(timings.values()), ratios, scores, settings=settings)


def agreement(ours: Sequence[ClassScore], theirs: Sequence[ClassScore]) -> dict[str, float]:
    """The differences between the results of the two solvers; AP is in points."""
    pairs = list(zip(ours, theirs, strict=True))
    tables = [abs(a.cross_validated[cost] - b.cross_validated[cost]) for a, b in pairs for cost in a.cross_validated]
    means = [100 * mean_over_classes([score.ap for score in scores])[0] for scores in (ours, theirs)]
    return {
        "mAP/newton": means[0],
        "mAP/liblinear": means[1],
        "classes_with_the_same_C": float(sum(a.cost == b.cost for a, b in pairs)),
        "largest_difference_of_cross_validated_AP": 100 * max(tables),
        "largest_difference_of_AP": 100 * max(abs(a.ap - b.ap) for a, b in pairs),
        "unconverged/newton": float(sum(score.unconverged for score in ours)),
        "unconverged/liblinear": float(sum(score.unconverged for score in theirs)),
    }


def timed(work: Callable[[], None]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Run `benchmarks/run.py svm`."""
    from benchmarks import run as runner

    return runner.main(["svm", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
