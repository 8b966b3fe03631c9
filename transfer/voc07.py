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

from adco.evaluation.bootstrap import (
    REPLICATES,
    average_precision,
    eleven_point_ap,
    in_percent,
    interval,
    mean_over_classes,
)
from adco.evaluation.predictions import write_ranks
from adco.evaluation.records import Predictions, Score
from adco.utils.errors import UserError, command
from adco.utils.files import output_folder, write_text
from transfer.classifier import voc_linear
from transfer.cli import BenchmarkRun, add_protocols, explain, make_job, make_parser, processors, skipped
from transfer.features.extract import VISSL_POOLS, Extraction, Feature
from transfer.svm import low_shot
from transfer.svm.protocols import PROTOCOLS, Protocol, chosen_protocols
from transfer.svm.svm import ClassScore, Solver, SvmRule, counted_targets, svm_scores
from transfer.voc import CLASSES, Voc, read_voc, say_what_data


def sides(voc: Voc, rows: np.ndarray, kept: np.ndarray) -> list[np.ndarray]:
    """trainval features and labels, test features and labels. rows: (K, D) of the images `kept` (positions in ids)."""
    place, found = np.full(len(voc.ids), -1), []
    place[kept] = np.arange(len(kept))
    for split in ("trainval", "test"):
        at = place[voc.rows[split]]
        found += [rows[at[at >= 0]], voc.labels[split][at >= 0]]
    return found


def judge(voc: Voc, rows: np.ndarray, kept: np.ndarray, rule: SvmRule, solver: Solver) -> list[ClassScore]:
    """SVM scores per class. rows: (K, D) features of the images `kept` (K,), positions in `voc.ids`."""
    return svm_scores(*sides(voc, rows, kept), rule, solver)


def mean_ap(scores: Sequence[ClassScore], labels: np.ndarray, rule: SvmRule, seed: int) -> dict[str, Score]:
    """`mAP` and `mAP11` (11-point) in percent with their 95% intervals over the test images. labels: (M, C)."""
    found = {}
    for name, metric in (("mAP", average_precision), ("mAP11", eleven_point_ap)):

        def mean(weights: np.ndarray | None = None, metric=metric):
            columns = []
            for c, score in enumerate(scores):
                if score.decisions is not None:
                    positive, counted = counted_targets(labels[:, c], rule.drop_difficult)
                    taken = None if weights is None else weights[..., counted]
                    columns.append(metric(positive[counted], score.decisions[counted], taken))
            return 100 * np.nanmean(np.stack(columns), axis=0) if columns else math.nan

        value = float(mean())
        found[name] = Score(value) if math.isnan(value) else Score.over_images(value, interval(mean, len(labels), seed))
    return found


def write_svm(
    job: BenchmarkRun,
    voc: Voc,
    protocol: Protocol,
    scores: list[ClassScore],
    done: Extraction,
    solver: Solver,
    seconds: float,
):
    """One record: mAP and each AP in percent, the chosen costs, and what could not be measured."""
    by_class = dict(zip(voc.classes, scores, strict=True))
    _, labels = sides(voc, done.kept, done.kept)[2:]
    means = mean_ap(scores, labels, protocol.rule, job.seed)
    percent = {f"AP/{name}": 100 * score.ap for name, score in by_class.items() if not math.isnan(score.ap)}
    settings = settings_of(protocol, done, solver) | {
        "cost": {name: score.cost for name, score in by_class.items() if not math.isnan(score.cost)},
        "unconverged_fits": sum(score.unconverged for score in scores),
        "classes_counted": mean_over_classes([score.ap for score in scores])[1],
        "classes_not_measured": {name: score.why_not for name, score in by_class.items() if score.why_not},
        "interval_replicates": REPLICATES,
        "trials": 1,
    }
    data = voc.describe() | {"unreadable": skipped(done)}
    keep = partial(keep_decisions, voc=voc, scores=scores, kept=done.kept, rule=protocol.rule)
    job.write_record(protocol.name, means | percent, data, settings, seconds, keep)
    return means


def keep_decisions(path: Path, voc: Voc, scores: list[ClassScore], kept: np.ndarray, rule: SvmRule) -> Predictions:
    """Write the measured classes' decisions on the test images; an image that does not count for a class says so."""
    rows, labels = sides(voc, kept, kept)[2:]
    targets, decisions = np.full(labels.shape, 2), np.zeros(labels.shape)
    for c, score in enumerate(scores):
        if score.decisions is not None:
            positive, counted = counted_targets(labels[:, c], rule.drop_difficult)
            targets[counted, c], decisions[:, c] = positive[counted], score.decisions
    return write_ranks(path, [voc.ids[row] for row in rows], decisions, targets)


def settings_of(protocol: Protocol, done: Extraction, solver: Solver) -> dict[str, object]:
    """What a record says of any SVM protocol."""
    return {
        "feature": protocol.kind,
        "fit": protocol.fit,
        "costs_tried": protocol.rule.costs,
        "folds": protocol.rule.folds if len(protocol.rule.costs) > 1 else 0,
        "random_state": protocol.rule.random_state,
        "drop_difficult": protocol.rule.drop_difficult,
        "pictures_computed": done.computed,
        "solver": solver.name,
    }


def run_low_shot(
    job: BenchmarkRun, voc: Voc, protocol: Protocol, done: Extraction, rows: np.ndarray, solver: Solver
) -> None:
    """Draw, train, test, write the record and the draws."""
    start, few = time.perf_counter(), protocol.low_shot
    train, train_labels, test, test_labels = sides(voc, rows, done.kept)
    draws = low_shot.draw(train_labels, few, job.seed)
    kept = set(done.kept.tolist())
    ids = [voc.ids[row] for row in voc.rows["trainval"] if row in kept]
    text = low_shot.as_text(draws, ids, voc.classes)
    listed = job.output_dir / f"{protocol.name.replace('/', '-')}-draws.txt"
    write_text(listed, text)
    scores, found = low_shot.low_shot_scores(train, test, test_labels, draws, few, protocol.rule, solver)
    digest = hashlib.sha256(text.encode()).hexdigest()
    settings = settings_of(protocol, done, solver) | found
    settings |= {"trials": few.samples, "draws": listed.name, "draws_sha256": digest}
    data = voc.describe() | {"unreadable": skipped(done)}
    for k in few.shots:
        score = scores[f"mAP/k{k}"]
        spread = "" if score.std is None else f" +- {score.std:.2f}"
        print(f"{job.protocol(protocol.name)}: k = {k}: mAP {score:.2f}{spread} ({score.trials} draws)")
    job.write_record(protocol.name, scores, data, settings, done.seconds + time.perf_counter() - start)


def table(voc: Voc, columns: dict[str, list[ClassScore]]) -> str:
    """AP in percent by class and protocol, and the mAP with how many classes it is over."""
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
            f"{name}: {c} not measured: {s.why_not}" for c, s in zip(voc.classes, scores, strict=True) if s.why_not
        ]
    return "\n".join(lines)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, "VOC2007, the VOCdevkit that holds it, or the folder that holds that")
    add_protocols(parser, "pcl", "all: every SVM protocol")
    parser.add_argument(
        "--stage", action="append", choices=(*VISSL_POOLS, "all"), help="the stage the vissl family looks at (res5)"
    )
    parser.add_argument("--solver", choices=("newton", "liblinear"), default="newton",
                        help="newton: all SVMs at once; liblinear: LinearSVC, the reference")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=processors(), help="processes of liblinear (all processors)")
    parser.add_argument("--shots", type=int, action="append", help="low-shot: only these k")
    parser.add_argument("--epochs", type=int, help="adco: train for fewer epochs, in the protocol's name (100)")
    args = parser.parse_args(argv)
    names = args.protocol or ["pcl"]
    about = {name: protocol.about for name, protocol in PROTOCOLS.items()} | {"adco": voc_linear.ABOUT}
    if "list" in names:
        print(explain(about))
        return 0
    if "all" in names:
        names = [name for name, protocol in PROTOCOLS.items() if protocol.low_shot is None]
    protocols = chosen_protocols([name for name in names if name != "adco"], args.stage or ["res5"], args.seed)
    if args.shots:
        protocols = [_only(protocol, args.shots) if protocol.low_shot else protocol for protocol in protocols]
    job = make_job(args)
    if "adco" in names:
        linear = read_voc(args.data, ("train", "val", "test"))
    if protocols:
        run_svms(job, read_voc(args.data), protocols, Solver(args.solver, args.jobs, job.reader.device))
    if "adco" in names:
        output_folder(job.output_dir)
        voc_linear.run(job, linear, args.epochs)
    return 0


def run_svms(job: BenchmarkRun, voc: Voc, protocols: Sequence[Protocol], solver: Solver) -> None:
    """Every SVM protocol on the features of one pass over the images."""
    say_what_data(voc)
    features = {p.name: Feature(job.transform(p.fit), p.kind) for p in protocols}
    done = job.extract(voc.images(), list(features.values()))
    columns, notes = {}, []
    for protocol in protocols:
        start, rows = time.perf_counter(), done.rows[features[protocol.name]]
        if protocol.low_shot:
            run_low_shot(job, voc, protocol, done, rows, solver)
            continue
        scores = judge(voc, rows, done.kept, protocol.rule, solver)
        seconds = done.seconds + time.perf_counter() - start
        means = write_svm(job, voc, protocol, scores, done, solver, seconds)
        name = job.protocol(protocol.name)
        columns[name.partition("/")[2]] = scores
        notes += [f"{name}: {key} {in_percent(score)}" for key, score in means.items()]
    if columns:
        print(table(voc, columns))
    print("\n".join(notes))


def _only(protocol: Protocol, shots: Sequence[int]) -> Protocol:
    if strange := [k for k in shots if k not in protocol.low_shot.shots]:
        raise UserError(f"--shots {strange[0]}: {protocol.name} has {', '.join(map(str, protocol.low_shot.shots))}")
    return replace(protocol, low_shot=replace(protocol.low_shot, shots=tuple(dict.fromkeys(shots))))


if __name__ == "__main__":
    sys.exit(main())
