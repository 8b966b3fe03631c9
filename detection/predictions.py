"""Which true box each detection matches, saved as a small file beside the record (format: adco/evaluation/predictions).

A detection is matched within its own image, so resampling the test images does not change its match: one bit for each
IoU is enough to compute AP, AP50 and AP75 of any resampled test set. The evaluators (evaluation.py) call this module.
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

MATCHES_FILE = "boxes.npz"  # in `OUTPUT_DIR/inference`, until it is moved beside the run's record
BITS = np.uint16(1) << np.arange(len(IOUS), dtype=np.uint16)  # (10,): bit i stands for the i-th of IOUS

Match = tuple[int, int, int, int]  # of a detection: index of the image, of the category; bits matched, bits ignored


def write_voc_matches(
    path: Path,
    lines: Mapping[int, Sequence[str]],
    classes: Sequence[str],
    image_set: Path,
    annotations: str,
    points: int,
) -> dict[str, np.ndarray]:
    """Match VOC detections to the true boxes as detectron2's VOC evaluator does, and write the matches.

    Args:
        path: The npz file to write.
        lines: Index of a class -> the evaluator's lines `IMAGE SCORE XMIN YMIN XMAX YMAX`, in pixels that start at 1.
        classes: Names of the classes.
        image_set: The list of test images.
        annotations: Template of the XML files' paths, with `{}` for the image.
        points: 11 for VOC2007's metric, 0 for the area under the precision envelope.

    Returns:
        The arrays written: `image`, `category`, `matched`, `ignored` (D,), `positives` (I, C) and `points`, for D
        detections, I images and C classes.
    """
    names = [line.strip() for line in image_set.read_text().splitlines()]
    index, truth = {name: i for i, name in enumerate(names)}, [parse_rec(annotations.format(name)) for name in names]
    positives, matches = np.zeros((len(names), len(classes)), dtype=np.uint16), []
    for c, class_name in enumerate(classes):
        own = [[item for item in items if item["name"] == class_name] for items in truth]
        boxes = [np.array([item["bbox"] for item in items], dtype=float).reshape(-1, 4) for items in own]
        difficult = [np.array([item["difficult"] for item in items], dtype=bool) for items in own]
        positives[:, c] = [(~flags).sum() for flags in difficult]
        detections = [line.split() for line in lines.get(c, ())]
        # the same sort as the evaluator's, so that equal scores come in the same order
        order = np.argsort(-np.array([float(item[1]) for item in detections]))
        taken = [np.zeros((len(IOUS), len(flags)), dtype=bool) for flags in difficult]
        for item in (detections[at] for at in order):
            i = index[item[0]]
            matches.append((i, c, *_voc_match(np.array(item[2:], dtype=float), boxes[i], difficult[i], taken[i])))
    arrays = _arrays(matches) | {"positives": positives, "points": np.int64(points)}
    write_boxes(path, names, arrays)
    return arrays


def ap_by_class(arrays: Mapping[str, np.ndarray], classes: Sequence[str]) -> dict[str, float]:
    """AP and AP50 of each class that has a true box, named as in detectron2's COCO evaluator.

    Args:
        arrays: What `write_voc_matches` returns.
        classes: Names of the classes.

    Returns:
        {AP-CLASS, AP50-CLASS} in percent.
    """
    image, category, positives = arrays["image"].astype(np.int64), arrays["category"], arrays["positives"]
    points, weights = int(arrays["points"]), np.ones((1, len(positives)))  # every image counts once
    scores = {}
    for c in np.flatnonzero(positives.any(axis=0)).tolist():
        own = category == c
        matched, ignored, images = arrays["matched"][own], arrays["ignored"][own], image[own]
        aps = []
        for bit in BITS:
            ap = detection_ap(matched & bit > 0, ignored & bit > 0, images, positives[:, c], points, weights)
            aps.append(100 * float(ap[0]))
        scores |= {f"AP-{classes[c]}": float(np.mean(aps)), f"AP50-{classes[c]}": aps[0]}
    return scores


def write_coco_matches(path: Path, truth, detections) -> None:
    """Match COCO detections to the true boxes by pycocotools' COCOeval, boxes of every size, and write the matches.

    Args:
        path: The npz file to write.
        truth: Ground truth, a pycocotools COCO.
        detections: Detections, a pycocotools COCO as `truth.loadRes` returns it.
    """
    evaluator = COCOeval(truth, detections, "bbox")
    evaluator.params.areaRng, evaluator.params.areaRngLbl = evaluator.params.areaRng[:1], ["all"]
    evaluator.evaluate()
    images, categories = list(evaluator.params.imgIds), list(evaluator.params.catIds)
    positives, matches = np.zeros((len(images), len(categories)), dtype=np.uint16), []
    for c in range(len(categories)):
        cells = evaluator.evalImgs[c * len(images) : (c + 1) * len(images)]  # ordered by category, then image
        scores, own = [], []
        for i, cell in enumerate(cells):
            if cell is None:  # neither true boxes nor detections
                continue
            positives[i, c] = (~np.asarray(cell["gtIgnore"], dtype=bool)).sum()
            matched, ignored = np.asarray(cell["dtMatches"]) > 0, np.asarray(cell["dtIgnore"], dtype=bool)  # (IoUs, D)
            scores += cell["dtScores"]
            own += [(i, c, BITS[(m & ~g)].sum(), BITS[g].sum()) for m, g in zip(matched.T, ignored.T, strict=True)]
        # COCOeval's own sort, which is stable
        matches += [own[at] for at in np.argsort(-np.array(scores), kind="mergesort")]
    names = [str(image) for image in images]
    write_boxes(path, names, _arrays(matches) | {"positives": positives, "points": np.int64(101)})


def move_beside(record: Path) -> Predictions | None:
    """Move the last evaluation's matches beside a record.

    Args:
        record: Path of the record, OUTPUT_DIR/record.json; the matches are in OUTPUT_DIR/inference.

    Returns:
        The reference that the record keeps of the file; None where the evaluation wrote none.
    """
    written, target = record.parent / "inference" / MATCHES_FILE, record.with_suffix(".npz")
    if not written.is_file():
        return None
    written.replace(target)
    return Predictions(target.name, sha256_of(target), "boxes")


def _voc_match(box: np.ndarray, boxes: np.ndarray, difficult: np.ndarray, taken: np.ndarray) -> tuple[int, int]:
    """(matched, ignored) bits of a detection, by VOC's rule.

    box: (4,) x0, y0, x1, y1 in pixels, both ends included; boxes: (N, 4) true boxes of the image and class; difficult:
    (N,) bool; taken: (10, N) bool, which true boxes are matched already at each IoU, updated in place.
    """
    if not len(boxes):
        return 0, 0
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + 1.0
    intersection = np.prod(np.maximum(sides, 0.0), axis=1)
    union = np.prod(box[2:] - box[:2] + 1.0) + np.prod(boxes[:, 2:] - boxes[:, :2] + 1.0, axis=1) - intersection
    iou = intersection / union
    best = int(np.argmax(iou))
    reached = iou[best] > np.arange(50, 100, 5) / 100.0
    if difficult[best]:
        return 0, int(BITS[reached].sum())
    matched = reached & ~taken[:, best]
    taken[matched, best] = True
    return int(BITS[matched].sum()), 0


def _arrays(matches: Sequence[Match]) -> dict[str, np.ndarray]:
    columns = np.array(matches, dtype=np.int64).reshape(-1, 4).T
    dtypes = {"image": np.uint32, "category": np.uint8, "matched": np.uint16, "ignored": np.uint16}
    return {name: column.astype(dtype) for (name, dtype), column in zip(dtypes.items(), columns, strict=True)}
