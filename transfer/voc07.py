"""VOC2007 image classification: one linear SVM per class on frozen features, under protocols that have names.

python transfer/voc07.py --checkpoint CHECKPOINT --data VOCdevkit --protocol pcl --protocol vissl --output-dir results
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run from a checkout, without installation

import hashlib
import math

import numpy as np

from adco.errors import UserError, command
from transfer.cli import Job, make_job, make_parser, processors, skipped
from transfer.features import VISSL_POOLS, Extraction, Feature, Pictures
from transfer.metrics import mean_over_classes
from transfer.svm import ClassScore, Solver, SvmRule, svm_scores

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
OFFICIAL_IMAGES = {"trainval": 5011, "test": 4952}
VISSL_COSTS = (0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Protocol:
    """A published way to obtain "VOC07 mAP". seeded: the protocol leaves random_state open, so --seed sets it."""

    name: str
    fit: str
    kind: str
    rule: SvmRule
    seeded: bool
    about: str


PROTOCOLS = {
    "pcl": Protocol(
        "pcl",
        "center",
        "gap",
        SvmRule(costs=(0.5,), drop_difficult=False, random_state=0),
        seeded=False,
        about="Shorter side 256, centre crop 224; global average pool (2048-d for a ResNet-50); x / (|x| + 1e-5).\n"
        "LinearSVC with C = 0.5, random_state 0; difficult images are negatives in training and test; all-point AP.",
    ),
    "vissl": Protocol(
        "vissl",
        "squash",
        "res5",
        SvmRule(costs=VISSL_COSTS, drop_difficult=True),
        seeded=True,
        about="Resize 256, then squash to 224x224; res5 pooled to 2x2 (8192-d for a ResNet-50); x / (|x| + 1e-5).\n"
        "C per class by 3-fold CV over .01 ... 1000; difficult: negative in training, dropped at test; all-point AP.",
    ),
}


@dataclass(frozen=True)
class Voc:
    """VOC2007's image lists.

    ids: every image of trainval and test, sorted; rows[split]: (N,) the positions in `ids` of that split's images;
    labels[split]: (N, C) of 1 present, -1 absent, 0 difficult.
    """

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    rows: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    fingerprint: str

    def pictures(self) -> Pictures:
        return Pictures(self.root, tuple(f"JPEGImages/{name}.jpg" for name in self.ids), "voc07")

    def describe(self) -> dict[str, object]:
        """What a record says of the data; `official` only when classes and both counts are VOC2007's own."""
        counts = {split: len(self.rows[split]) for split in OFFICIAL_IMAGES}
        official = counts == OFFICIAL_IMAGES and self.classes == CLASSES
        both = len(np.intersect1d(self.rows["trainval"], self.rows["test"]))
        content = {"name": "VOC2007", "fingerprint": self.fingerprint, "official": official}
        content |= {f"{split}_images": count for split, count in counts.items()}
        content |= {f"{split}_official": count for split, count in OFFICIAL_IMAGES.items()}
        return content | {"classes": len(self.classes), "images_in_both_splits": both}


def read_voc(data: Path) -> Voc:
    """Read the per-class lists CLASS_{trainval,test}.txt of VOC2007 below `data` (VOC2007, VOCdevkit or its parent).

    Raises UserError for an absent list, a line that is none, lists that disagree, and a picture that is not there.
    """
    root = find_voc(data)
    folder = root / "ImageSets" / "Main"
    classes = [name for name in CLASSES if any((folder / f"{name}_{split}.txt").exists() for split in OFFICIAL_IMAGES)]
    if not classes:
        raise UserError(f"{folder}: no class lists; expected aeroplane_trainval.txt, aeroplane_test.txt and so on")
    digest, names, labels = hashlib.sha256(), {}, {}
    for split in OFFICIAL_IMAGES:
        columns = []
        for name in classes:
            path = folder / f"{name}_{split}.txt"
            found = read_list(path, digest)
            if names.setdefault(split, list(found)) != list(found):
                raise UserError(
                    f"{path}: lists other images than {classes[0]}_{split}.txt; the lists of a split must agree"
                )
            columns.append(list(found.values()))
        labels[split] = np.array(columns, dtype=np.int8).T
        listed = folder / f"{classes[0]}_{split}.txt"
        for name in names[split]:
            if not (root / "JPEGImages" / f"{name}.jpg").is_file():
                raise UserError(f"{listed}: lists {name}, but {root / 'JPEGImages' / name}.jpg does not exist")
    ids = tuple(sorted({name for found in names.values() for name in found}))
    position = {name: i for i, name in enumerate(ids)}
    rows = {split: np.array([position[name] for name in found]) for split, found in names.items()}
    return Voc(root, tuple(classes), ids, rows, labels, digest.hexdigest())


def find_voc(data: Path) -> Path:
    """The VOC2007 folder at or below `data`."""
    for root in (data, data / "VOC2007", data / "VOCdevkit" / "VOC2007"):
        if (root / "ImageSets" / "Main").is_dir():
            return root
    raise UserError(f"{data}: no VOC2007 in it; expected ImageSets/Main below it, VOC2007 or VOCdevkit/VOC2007")


def read_list(path: Path, digest) -> dict[str, int]:
    """A VOC list of `IMAGE LABEL` lines, label 1, 0 (difficult) or -1, in its order; its bytes go into `digest`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the list cannot be read ({error.strerror}); every class needs both splits") from error
    digest.update(f"{path.name}\0".encode() + content)
    labels = {}
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        name, *label = line.split()
        if label not in (["1"], ["0"], ["-1"]) or name in labels:
            raise UserError(
                f"{path}:{number}: expected `IMAGE LABEL`, label 1, 0 or -1, each image once; found {line!r}"
            )
        labels[name] = int(label[0])
    if not labels:
        raise UserError(f"{path}: the list is empty")
    return labels


def judge(voc: Voc, rows: np.ndarray, kept: np.ndarray, rule: SvmRule, jobs: int) -> list[ClassScore]:
    """SVM scores per class. rows: (K, D) features of the images `kept` (K,), positions in `voc.ids`."""
    place = np.full(len(voc.ids), -1)
    place[kept] = np.arange(len(kept))
    sides = []
    for split in ("trainval", "test"):
        at = place[voc.rows[split]]
        sides += [rows[at[at >= 0]], voc.labels[split][at >= 0]]
    return svm_scores(*sides, rule, Solver("newton", jobs))


def write_record(job: Job, voc: Voc, protocol: Protocol, scores: list[ClassScore], done: Extraction, seconds: float):
    """One record: mAP and each AP in percent, the chosen costs, and what could not be measured."""
    by_class = dict(zip(voc.classes, scores, strict=True))
    mean, counted = mean_over_classes([score.ap for score in scores])
    percent = {f"AP/{name}": 100 * score.ap for name, score in by_class.items() if not math.isnan(score.ap)}
    settings = {
        "feature": protocol.kind,
        "fit": protocol.fit,
        "cost": {name: score.cost for name, score in by_class.items() if not math.isnan(score.cost)},
        "costs_tried": protocol.rule.costs,
        "folds": protocol.rule.folds if len(protocol.rule.costs) > 1 else 0,
        "random_state": protocol.rule.random_state,
        "drop_difficult": protocol.rule.drop_difficult,
        "unconverged_fits": sum(score.unconverged for score in scores),
        "pictures_computed": done.computed,
        "classes_counted": counted,
        "classes_not_measured": {name: score.why_not for name, score in by_class.items() if score.why_not},
    }
    data = voc.describe() | {"unreadable": skipped(done)}
    job.write_record(f"voc07-svm/{protocol.name}", {"mAP": 100 * mean} | percent, data, settings, seconds)


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
            lines.append(f"{name}: {unconverged} fits stopped at max_iter before converging")
        lines += [
            f"{name}: {c} not measured: {s.why_not}" for c, s in zip(voc.classes, scores, strict=True) if s.why_not
        ]
    return "\n".join(lines)


def chosen_protocols(names: Sequence[str], stage: str, seed: int) -> list[Protocol]:
    """The protocols by name, each once, with the seed where the protocol leaves it open. Raises UserError."""
    protocols = []
    for name in dict.fromkeys(names):
        if name not in PROTOCOLS:
            raise UserError(f"--protocol {name}: not known; choose {', '.join(PROTOCOLS)}, or list to read of them")
        protocol = PROTOCOLS[name]
        if protocol.seeded:
            protocol = replace(protocol, rule=replace(protocol.rule, random_state=seed))
        if protocol.kind in VISSL_POOLS and stage != protocol.kind:
            protocol = replace(protocol, kind=stage, name=f"{name}-{stage}")
        protocols.append(protocol)
    return protocols


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, "VOC2007, the VOCdevkit that holds it, or the folder that holds that")
    parser.add_argument("--protocol", action="append", help="pcl or vissl, may be repeated; list explains them (pcl)")
    parser.add_argument("--stage", choices=tuple(VISSL_POOLS), default="res5", help="the stage vissl looks at (res5)")
    parser.add_argument("--jobs", type=int, default=processors(), help="SVMs trained at a time (all processors)")
    args = parser.parse_args(argv)
    names = args.protocol or ["pcl"]
    if "list" in names:
        print(
            "\n".join(
                f"{name}\n  {protocol.about.replace(chr(10), chr(10) + '  ')}" for name, protocol in PROTOCOLS.items()
            )
        )
        return 0
    protocols = chosen_protocols(names, args.stage, args.seed)
    job, voc = make_job(args), read_voc(args.data)
    say_what_data(voc)
    features = {p.name: Feature(job.transform(p.fit), p.kind) for p in protocols}
    done = job.extract(voc.pictures(), list(features.values()))
    columns = {}
    for protocol in protocols:
        begun = time.perf_counter()
        scores = judge(voc, done.rows[features[protocol.name]], done.kept, protocol.rule, args.jobs)
        columns[job.protocol(protocol.name)] = scores
        write_record(job, voc, protocol, scores, done, done.seconds + time.perf_counter() - begun)
    print(table(voc, columns))
    return 0


def say_what_data(voc: Voc) -> None:
    """Print the image counts, and plainly when these are not the official splits."""
    content = voc.describe()
    print(f"VOC2007: {content['trainval_images']} trainval and {content['test_images']} test images")
    if not content["official"]:
        official = " and ".join(f"{count} {split}" for split, count in OFFICIAL_IMAGES.items())
        print(f"NOT the official VOC2007 ({official}, 20 classes; {len(voc.classes)} here): no published row compares")
    if content["images_in_both_splits"]:
        print(f"WARNING: {content['images_in_both_splits']} images are in trainval and in test: the score is too good")


if __name__ == "__main__":
    sys.exit(main())
