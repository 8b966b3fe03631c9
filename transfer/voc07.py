"""VOC2007 image classification with a frozen backbone, under protocols that have names: SVM, low-shot SVM, linear.

python transfer/voc07.py --checkpoint CHECKPOINT --data VOCdevkit --protocol pcl --protocol vissl --output-dir results
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run from a checkout, without installation

import hashlib
import math

import numpy as np

from adco.evaluation.average_precision import average_precision, eleven_point_ap
from adco.evaluation.bootstrap import REPLICATES, in_percent, interval, mean_over_classes
from adco.evaluation.predictions import write_ranks
from adco.evaluation.records import Predictions, Score
from adco.utils.device import usable_cores
from adco.utils.errors import UserError, command
from adco.utils.files import output_folder, write_text
from transfer.classifier import voc_linear
from transfer.cli import BenchmarkRun, add_protocols, make_job, make_parser, select_protocols, skipped
from transfer.features.extract import VISSL_POOLS, Extraction, Feature
from transfer.svm.low_shot import as_text, draw, low_shot_scores
from transfer.svm.protocols import PROTOCOLS, LowShot, SvmProtocol, chosen_protocols
from transfer.svm.svm import ClassScore, Solver, SvmRule, counted_targets, svm_scores
from transfer.voc import CLASSES, Voc, read_voc, say_what_data


def split_features(voc: Voc, features: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, ...]:
    """Split features by trainval and test, without the images that could not be read.

    Args:
        voc: the data set, with C classes.
        features: (K, D) of the images `kept`.
        kept: (K,) positions in `voc.ids`.

    Returns:
        trainval's features (N, D) and labels (N, C), test's features (M, D) and labels (M, C).
    """
    place, parts = np.full(len(voc.ids), -1), []
    place[kept] = np.arange(len(kept))
    for split in ("trainval", "test"):
        at = place[voc.rows[split]]
        parts += [features[at[at >= 0]], voc.labels[split][at >= 0]]
    return tuple(parts)


def evaluate_svms(voc: Voc, features: np.ndarray, kept: np.ndarray, rule: SvmRule, solver: Solver) -> list[ClassScore]:
    """Train on trainval and test on test, one SVM per class; features (K, D) and kept (K,) as in `split_features`."""
    train, train_labels, test, test_labels = split_features(voc, features, kept)
    return svm_scores(train, train_labels, test, test_labels, rule, solver)


def mean_ap(scores: Sequence[ClassScore], labels: np.ndarray, rule: SvmRule, seed: int) -> dict[str, Score]:
    """Compute the means over the measured classes.

    Args:
        scores: C results.
        labels: (M, C) of test's images, 1 present, -1 absent, 0 difficult.
        rule: the treatment of difficult images.
        seed: of the bootstrap.

    Returns:
        `mAP` and `mAP11` (11-point AP) in percent, with their 95% intervals over the test images; NaN without a
        measured class.
    """
    means = {}
    for name, metric in (("mAP", average_precision), ("mAP11", eleven_point_ap)):

        def mean(weights: np.ndarray | None = None, metric=metric) -> np.ndarray:
            """mAP in percent, or (B,) of it for (B, M) weights."""
            columns = []
            for c, score in enumerate(scores):
                if score.decisions is not None:
                    positive, counted = counted_targets(labels[:, c], rule.drop_difficult)
                    counted_weights = None if weights is None else weights[..., counted]
                    columns.append(metric(positive[counted], score.decisions[counted], counted_weights))
            return 100 * np.nanmean(np.stack(columns), axis=0)

        if any(score.decisions is not None for score in scores):
            means[name] = Score.over_images(float(mean()), interval(mean, len(labels), seed))
        else:
            means[name] = Score(math.nan)
    return means


def write_svm(
    run: BenchmarkRun,
    voc: Voc,
    protocol: SvmProtocol,
    scores: list[ClassScore],
    done: Extraction,
    solver: Solver,
    seconds: float,
) -> dict[str, Score]:
    """Write one record: mAP and each AP in percent, the chosen costs, and what could not be measured.

    Returns:
        `mAP` and `mAP11`.
    """
    by_class = dict(zip(voc.classes, scores, strict=True))
    *_, labels = split_features(voc, done.kept, done.kept)
    means = mean_ap(scores, labels, protocol.rule, run.seed)
    percent = {f"AP/{name}": 100 * score.ap for name, score in by_class.items() if not math.isnan(score.ap)}
    settings = settings_of(protocol, done, solver) | {
        "cost": {name: score.cost for name, score in by_class.items() if not math.isnan(score.cost)},
        "unconverged_fits": sum(score.unconverged for score in scores),
        "classes_counted": mean_over_classes([score.ap for score in scores])[1],
        "classes_not_measured": {name: score.not_measured for name, score in by_class.items() if score.not_measured},
        "interval_replicates": REPLICATES,
        "trials": 1,
    }
    data = voc.describe() | {"unreadable": skipped(done)}
    write_predictions = partial(write_decisions, voc=voc, scores=scores, kept=done.kept, rule=protocol.rule)
    run.write_record(protocol.name, {**means, **percent}, data, settings, seconds, write_predictions)
    return means


def write_decisions(path: Path, voc: Voc, scores: list[ClassScore], kept: np.ndarray, rule: SvmRule) -> Predictions:
    """Write the decisions on the test images.

    The target is 1 or 0, and 2 where an image does not count for a class or the class was not measured.
    """
    *_, images, labels = split_features(voc, kept, kept)
    targets, decisions = np.full(labels.shape, 2), np.zeros(labels.shape)
    for c, score in enumerate(scores):
        if score.decisions is not None:
            positive, counted = counted_targets(labels[:, c], rule.drop_difficult)
            targets[counted, c], decisions[:, c] = positive[counted], score.decisions
    return write_ranks(path, [voc.ids[image] for image in images], decisions, targets)


def settings_of(protocol: SvmProtocol, done: Extraction, solver: Solver) -> dict[str, object]:
    """The settings that a record of any SVM protocol has."""
    return {
        "feature": protocol.kind,
        "fit": protocol.fit,
        "costs_tried": protocol.rule.costs,
        "folds": protocol.rule.folds if protocol.rule.cross_validates else 0,
        "random_state": protocol.rule.random_state,
        "drop_difficult": protocol.rule.drop_difficult,
        "pictures_computed": done.computed,
        "solver": solver.name,
    }


def run_low_shot(
    run: BenchmarkRun,
    voc: Voc,
    protocol: SvmProtocol,
    few: LowShot,
    done: Extraction,
    features: np.ndarray,
    solver: Solver,
) -> None:
    """Draw training sets, train and test on each, and write the record and the list of what was drawn."""
    start = time.perf_counter()
    train, train_labels, test, test_labels = split_features(voc, features, done.kept)
    draws = draw(train_labels, few, run.seed)
    kept = set(done.kept.tolist())
    ids = [voc.ids[row] for row in voc.rows["trainval"] if row in kept]
    text = as_text(draws, ids, voc.classes)
    list_path = run.output_dir / f"{protocol.name.replace('/', '-')}-draws.txt"
    write_text(list_path, text)
    scores, trials = low_shot_scores(train, test, test_labels, draws, few, protocol.rule, solver)
    digest = hashlib.sha256(text.encode()).hexdigest()
    settings = settings_of(protocol, done, solver) | trials
    settings |= {"trials": few.samples, "draws": list_path.name, "draws_sha256": digest}
    data = voc.describe() | {"unreadable": skipped(done)}
    for k in few.shots:
        score = scores[f"mAP/k{k}"]
        spread = "" if score.std is None else f" +- {score.std:.2f}"
        print(f"{run.protocol(protocol.name)}: k = {k}: mAP {score:.2f}{spread} ({score.trials} draws)")
    run.write_record(protocol.name, scores, data, settings, done.seconds + time.perf_counter() - start)


def table(voc: Voc, columns: dict[str, list[ClassScore]]) -> str:
    """Format the AP in percent by class and protocol, the mAP, and over how many classes it is."""
    width = max(14, *(len(name) + 2 for name in columns))
    lines = [f"{'AP, %':<14}" + "".join(f"{name:>{width}}" for name in columns)]
    for i, name in enumerate(voc.classes):
        cells = ("-" if math.isnan(scores[i].ap) else f"{100 * scores[i].ap:.2f}" for scores in columns.values())
        lines.append(f"{name:<14}" + "".join(f"{cell:>{width}}" for cell in cells))
    means = [mean_over_classes([score.ap for score in scores]) for scores in columns.values()]
    lines.append(f"{'mAP':<14}" + "".join(f"{100 * mean:>{width}.2f}" for mean, _ in means))
    lines.append(f"{'classes':<14}" + "".join(f"{f'{n} of {len(CLASSES)}':>{width}}" for _, n in means))
    for name, scores in columns.items():
        if unconverged := sum(score.unconverged for score in scores):
            lines.append(f"{name}: {unconverged} fits stopped before converging")
        lines += [
            f"{name}: {c} not measured: {s.not_measured}"
            for c, s in zip(voc.classes, scores, strict=True)
            if s.not_measured
        ]
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run every protocol that was asked for, and write a record for each."""
    parser = make_parser(__doc__, "VOC2007, the VOCdevkit that holds it, or the folder that holds that")
    add_protocols(parser, "pcl", "all: every SVM protocol")
    parser.add_argument(
        "--stage", action="append", choices=(*VISSL_POOLS, "all"), help="the stage the vissl family classifies (res5)"
    )
    parser.add_argument("--solver", choices=("newton", "liblinear"), default="newton",
                        help="newton: all SVMs at once; liblinear: LinearSVC, the reference")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes of liblinear (all cores)")
    parser.add_argument("--shots", type=int, action="append", help="low-shot: only these k")
    parser.add_argument("--epochs", type=int, help="adco: train for fewer epochs, in the protocol's name (100)")
    args = parser.parse_args(argv)
    about = {name: protocol.about for name, protocol in PROTOCOLS.items()} | {"adco": voc_linear.ABOUT}
    names = select_protocols(args.protocol, "pcl", about, also=["all"])
    if not names:
        return 0
    if "all" in names:
        names = [name for name, protocol in PROTOCOLS.items() if protocol.low_shot is None]
    protocols = chosen_protocols((name for name in names if name != "adco"), args.stage or ["res5"], args.seed)
    if args.shots:
        protocols = [_only(protocol, args.shots) for protocol in protocols]
    run = make_job(args)
    adco_voc = read_voc(args.data, ("train", "val", "test")) if "adco" in names else None
    if protocols:
        run_svms(run, read_voc(args.data), protocols, Solver(args.solver, args.jobs, run.reader.device))
    if adco_voc is not None:
        output_folder(run.output_dir)
        voc_linear.train_and_test(run, adco_voc, args.epochs)
    return 0


def run_svms(run: BenchmarkRun, voc: Voc, protocols: Sequence[SvmProtocol], solver: Solver) -> None:
    """Run every SVM protocol on the features of one pass over the images."""
    say_what_data(voc)
    features = {p.name: Feature(run.transform(p.fit), p.kind) for p in protocols}
    done = run.extract(voc.images(), list(features.values()))
    columns, notes = {}, []
    for protocol in protocols:
        start, embeddings = time.perf_counter(), done.rows[features[protocol.name]]
        if protocol.low_shot:
            run_low_shot(run, voc, protocol, protocol.low_shot, done, embeddings, solver)
            continue
        scores = evaluate_svms(voc, embeddings, done.kept, protocol.rule, solver)
        seconds = done.seconds + time.perf_counter() - start
        means = write_svm(run, voc, protocol, scores, done, solver, seconds)
        name = run.protocol(protocol.name)
        columns[name.partition("/")[2]] = scores
        notes += [f"{name}: {key} {in_percent(score)}" for key, score in means.items()]
    if columns:
        print(table(voc, columns))
    print("\n".join(notes))


def _only(protocol: SvmProtocol, shots: Sequence[int]) -> SvmProtocol:
    """A low-shot protocol with only these k; any other protocol as it is."""
    few = protocol.low_shot
    if few is None:
        return protocol
    if unknown := [k for k in shots if k not in few.shots]:
        raise UserError(f"--shots {unknown[0]}: {protocol.name} has {', '.join(map(str, few.shots))}")
    return replace(protocol, low_shot=replace(few, shots=tuple(dict.fromkeys(shots))))


if __name__ == "__main__":
    sys.exit(main())
