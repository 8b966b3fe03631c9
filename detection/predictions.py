"""Which detections found what, kept small (adco.evaluation), so that AP can be computed on images drawn again.

A detection is matched within its own image, so drawing images again cannot change what it matched: a bit for each IoU
is all that AP, AP50 and AP75 need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from detectron2.evaluation.pascal_voc_evaluation import parse_rec
from pycocotools.cocoeval import COCOeval

from adco.evaluation.predictions import IOUS, detection_ap, write_boxes
from adco.evaluation.records import Predictions
from adco.utils.files import sha256_of

BOXES = "boxes.npz"  # below `inference`, until the run's record is written beside it
BITS = np.uint16(1) << np.arange(len(IOUS), dtype=np.uint16)


def write_voc(
    path: Path,
    lines: Mapping[int, Sequence[str]],
    classes: Sequence[str],
    image_set: Path,
    annotations: str,
    points: int,
) -> dict[str, np.ndarray]:
    """detectron2's lines `IMAGE SCORE XMIN YMIN XMAX YMAX` by class, matched as its VOC evaluator does.

    Returns what was written, as adco/evaluation/predictions.py names it.

    image_set: the list of test images; annotations: a template for their XML files
    points: 11 for VOC2007's metric, 0 for the area under the envelope
    """
    names = [line.strip() for line in image_set.read_text().splitlines()]
    place, truth = {name: i for i, name in enumerate(names)}, [parse_rec(annotations.format(name)) for name in names]
    positives, parts = np.zeros((len(names), len(classes)), dtype=np.uint16), []
    for c, class_name in enumerate(classes):
        own = [[item for item in items if item["name"] == class_name] for items in truth]
        boxes = [np.array([item["bbox"] for item in items], dtype=float).reshape(-1, 4) for items in own]
        hard = [np.array([item["difficult"] for item in items], dtype=bool) for items in own]
        positives[:, c] = [(~flags).sum() for flags in hard]
        found = [line.split() for line in lines.get(c, ())]
        order = np.argsort(-np.array([float(item[1]) for item in found]))  # the evaluator's own, ties and all
        taken = [np.zeros((len(IOUS), len(flags)), dtype=bool) for flags in hard]
        for item in (found[at] for at in order):
            image = place[item[0]]
            bits = _voc_bits(np.array(item[2:], dtype=float), boxes[image], hard[image], taken[image])
            parts.append((image, c, *bits))
    arrays = _arrays(parts) | {"positives": positives, "points": np.int64(points)}
    write_boxes(path, names, arrays)
    return arrays


def by_class(arrays: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
    """{AP-CLASS, AP50-CLASS}, in percent, of the classes that have a box to be found; `arrays` as write_voc gives them.

    The names are those of detectron2's COCO evaluator.
    """
    image, category, positives = arrays["image"].astype(np.int64), arrays["category"], arrays["positives"]
    every, scores = np.ones((1, len(positives))), {}
    for c in np.flatnonzero(positives.any(axis=0)):
        own = category == c
        flags = [[arrays[name][own] & bit > 0 for name in ("matched", "ignored")] for bit in BITS]
        aps = [
            100 * float(detection_ap(*both, image[own], positives[:, c], int(arrays["points"]), every)[0])
            for both in flags
        ]
        scores |= {f"AP-{classes[c]}": float(np.mean(aps)), f"AP50-{classes[c]}": aps[0]}
    return scores


def write_coco(path: Path, truth, found) -> None:
    """pycocotools' ground truth and results, matched by its COCOeval over boxes of every size."""
    judge = COCOeval(truth, found, "bbox")
    judge.params.areaRng, judge.params.areaRngLbl = judge.params.areaRng[:1], ["all"]
    judge.evaluate()
    images, categories = list(judge.params.imgIds), list(judge.params.catIds)
    positives, parts = np.zeros((len(images), len(categories)), dtype=np.uint16), []
    for c in range(len(categories)):
        cells = judge.evalImgs[c * len(images) : (c + 1) * len(images)]
        scores, rows = [], []
        for i, cell in enumerate(cells):
            if cell is None:
                continue
            positives[i, c] = (~np.asarray(cell["gtIgnore"], dtype=bool)).sum()
            matched, ignored = np.asarray(cell["dtMatches"]) > 0, np.asarray(cell["dtIgnore"], dtype=bool)
            scores += cell["dtScores"]
            rows += [(i, c, BITS[(m & ~g)].sum(), BITS[g].sum()) for m, g in zip(matched.T, ignored.T, strict=True)]
        parts += [rows[at] for at in np.argsort(-np.array(scores), kind="mergesort")]
    names = [str(image) for image in images]
    write_boxes(path, names, _arrays(parts) | {"positives": positives, "points": np.int64(101)})


def keep_beside(record: Path) -> Predictions | None:
    """Move what the last evaluation wrote to beside `record` (its path), and say so; None where nothing was written."""
    written, kept = record.parent / "inference" / BOXES, record.with_suffix(".npz")
    if not written.is_file():
        return None
    written.replace(kept)
    return Predictions(kept.name, sha256_of(kept), "boxes")


def _voc_bits(box: np.ndarray, boxes: np.ndarray, hard: np.ndarray, taken: np.ndarray) -> tuple[int, int]:
    """(matched, ignored) bits of a detection; `taken` (IoUs, boxes) is marked. Pixels are counted inclusively."""
    if not len(boxes):
        return 0, 0
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + 1.0
    shared = np.prod(np.maximum(sides, 0.0), axis=1)
    union = np.prod(box[2:] - box[:2] + 1.0) + np.prod(boxes[:, 2:] - boxes[:, :2] + 1.0, axis=1) - shared
    overlap = shared / union
    best = int(np.argmax(overlap))
    reached = overlap[best] > np.arange(50, 100, 5) / 100.0
    if hard[best]:
        return 0, int(BITS[reached].sum())
    matched = reached & ~taken[:, best]
    taken[matched, best] = True
    return int(BITS[matched].sum()), 0


def _arrays(parts: Sequence[tuple[int, int, int, int]]) -> dict[str, np.ndarray]:
    columns = np.array(parts, dtype=np.int64).reshape(-1, 4).T
    kinds = {"image": np.uint32, "category": np.uint8, "matched": np.uint16, "ignored": np.uint16}
    return {name: column.astype(kind) for (name, kind), column in zip(kinds.items(), columns, strict=True)}
