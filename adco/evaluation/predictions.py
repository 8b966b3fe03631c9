"""Compact predictions for every test image, kept beside a record: enough to compute its scores on resampled images.

There are three kinds of npz file without pickled objects. All have `images`, the sha256 of the test images' names in
their order:
- `hits`: NAME -> (N,) bits, whether an image was classified correctly, for `top1`, `top5` and `HEAD/top1`. 63 kB for
  ImageNet.
- `ranks`: multi-label scores as ranks, because average precision depends on nothing else. `ranks` (M, C) uint16: rank
  of an image's score within its class, the same for equal scores; `rows` (M, C) uint8: rank of a class's score within
  its image, where the metric is by image; `targets` (M, C) uint8: 0 negative, 1 positive, 2 not counted. 200 kB for
  VOC2007.
- `boxes`: detections sorted by class and by descending score: `image`, `category`, and bit i of `matched` and `ignored`
  for the i-th IoU of .5, .55 ... .95; `positives` (I, C): number of true boxes; `points`: 11 or 101 recalls over which
  the precision is averaged, 0 for the whole area under its envelope.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from adco.evaluation.average_precision import (
    average_precision,
    eleven_point_ap,
    sample_average_precision,
    weighted_mean,
)
from adco.evaluation.records import Predictions, Record
from adco.utils.errors import UserError
from adco.utils.files import atomic_write, sha256_of

Metric = Callable[[np.ndarray], np.ndarray]  # (B, images) counts of each test image -> (B,) percent
IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))


def write_hits(path: Path, names: Sequence[str], hits: Mapping[str, np.ndarray]) -> Predictions:
    """Write which images were classified correctly.

    Args:
        path: The npz file.
        names: (N,) names of the test images.
        hits: Metric -> (N,) bool.

    Returns:
        The reference to the file for the record.
    """
    bits = {f"hits/{name}": np.packbits(np.asarray(hit, dtype=bool)) for name, hit in hits.items()}
    return _write(path, "hits", names, bits | {"count": np.asarray(len(names))})


def write_ranks(
    path: Path, names: Sequence[str], scores: np.ndarray, targets: np.ndarray, by_image: bool = False
) -> Predictions:
    """Write multi-label scores as ranks.

    Args:
        path: The npz file.
        names: (M,) names of the test images, M below 65536.
        scores: (M, C) finite numbers, C below 256.
        targets: (M, C) integers: 0 negative, 1 positive, 2 not counted.
        by_image: Also keep the ranks within each image, for `sample_AP`.

    Returns:
        The reference to the file for the record.

    Raises:
        ValueError: A score is NaN or infinite.
    """
    arrays = {"ranks": _dense(scores.T).T.astype(np.uint16), "targets": np.asarray(targets, dtype=np.uint8)}
    if by_image:
        arrays["rows"] = _dense(scores).astype(np.uint8)
    return _write(path, "ranks", names, arrays)


def write_boxes(path: Path, names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Predictions:
    """Write matched detections.

    Args:
        path: The npz file.
        names: (I,) names of the test images.
        arrays: `image`, `category`, `matched`, `ignored` (D,), `positives` (I, C) and `points`; see the module.

    Returns:
        The reference to the file for the record.
    """
    return _write(path, "boxes", names, arrays)


def load_predictions(record: Record) -> tuple[str, dict[str, Metric], int]:
    """Read the predictions of a record.

    Args:
        record: A record that was read from a file and has `predictions`.

    Returns:
        The sha256 of the images' names, metric by name, and the number of images.

    Raises:
        ValueError: The record has no predictions beside it.
        UserError: The file is missing, is not the one of the record, or does not give the record's scores.
    """
    kept = record.predictions
    if kept is None or record.folder is None:
        raise ValueError("the record has no predictions beside it")
    path = record.folder / kept.file
    if not path.is_file():
        raise UserError(f"{path}: not there; the record beside it names it")
    if sha256_of(path) != kept.sha256:
        raise UserError(f"{path}: not the file that its record names (its sha256 differs)")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        metrics, images = _METRICS[kept.kind](arrays)
        digest = str(arrays["images"])
    except (OSError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not readable as {kept.kind} ({error})") from error
    for name, metric in metrics.items():
        value = float(metric(np.ones((1, images)))[0])
        if name in record.scores and not abs(value - record.scores[name]) < 1e-3:
            raise UserError(f"{path}: its {name} is {value:.3f}, the record's {record.scores[name]:.3f}")
    return digest, metrics, images


def detection_ap(
    matched: np.ndarray, ignored: np.ndarray, image: np.ndarray, positives: np.ndarray, points: int, weights: np.ndarray
) -> np.ndarray:
    """AP of one class at one IoU on resampled test sets.

    Args:
        matched: (D,) bool, whether a detection matches a true box; detections by descending score.
        ignored: (D,) bool, whether a detection does not count.
        image: (D,) index of the image of a detection.
        positives: (I,) number of true boxes of each image.
        points: Number of recalls over which the precision is averaged (11: VOC2007, 101: COCO), 0 for the area under
            the monotone precision envelope.
        weights: (B, I) how often each image counts.

    Returns:
        (B,) in [0, 1], NaN without true boxes.
    """
    taken = weights[:, image] * ~ignored  # (B, D)
    true = np.cumsum(taken * matched, axis=1)
    seen = np.cumsum(taken, axis=1)
    wanted = weights @ positives  # true boxes: (B,)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = true / wanted[:, None]
        precision = np.where(seen > 0, true / seen, 0)
    # monotone envelope: the best precision at this recall or a larger one
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    if not points:
        ap = np.sum(np.diff(recall, prepend=0.0, axis=1) * best, axis=1)
    else:
        asked = np.arange(0.0, 1.1, 0.1) if points == 11 else np.linspace(0, 1, points)
        best = np.append(best, np.zeros((len(best), 1)), axis=1)  # recall that is never reached has precision 0
        ap = np.mean([best[range(len(best)), (recall < r).sum(axis=1)] for r in asked], axis=0)
    return np.where(wanted > 0, ap, np.nan)


def _write(path: Path, kind: str, names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Predictions:
    digest = hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()
    with atomic_write(path) as file:
        # pyright takes the arrays for the stub's keyword allow_pickle, too
        np.savez_compressed(file, images=np.asarray(digest), **arrays)  # pyright: ignore[reportArgumentType]
    return Predictions(Path(path).name, sha256_of(path), kind)


def _dense(rows: np.ndarray) -> np.ndarray:
    """(R, N) -> rank of each value within its row, from 0; equal values have the same rank."""
    if not np.isfinite(rows).all():
        raise ValueError("scores hold NaN or infinity; a ranking of them means nothing")
    return np.stack([np.unique(row, return_inverse=True)[1] for row in rows])


def _hits(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Metric], int]:
    count = int(arrays["count"])
    bits = {n.removeprefix("hits/"): np.unpackbits(a, count=count) for n, a in arrays.items() if n.startswith("hits/")}
    return {name: _percent(weighted_mean(hit)) for name, hit in bits.items()}, count


def _ranks(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Metric], int]:
    ranks, targets = arrays["ranks"].astype(float), arrays["targets"]
    if ranks.shape != targets.shape or ranks.ndim != 2:
        raise ValueError(f"ranks {ranks.shape} and targets {targets.shape} do not fit")
    metrics = {"mAP": _over_classes(ranks, targets, average_precision)}
    if "rows" in arrays:
        by_image = sample_average_precision(targets == 1, arrays["rows"].astype(float))
        return metrics | {"sample_AP": _percent(weighted_mean(by_image))}, len(ranks)
    return metrics | {"mAP11": _over_classes(ranks, targets, eleven_point_ap)}, len(ranks)


def _over_classes(ranks: np.ndarray, targets: np.ndarray, ap: Callable) -> Metric:
    def metric(weights: np.ndarray) -> np.ndarray:
        columns = []
        for column, target in zip(ranks.T, targets.T, strict=True):
            if (target == 1).any():
                counted = target != 2
                columns.append(ap(target[counted] == 1, column[counted], weights[:, counted]))
        return 100 * np.nanmean(np.stack(columns), axis=0)

    return metric


def _boxes(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Metric], int]:
    image, category = arrays["image"].astype(np.int64), arrays["category"].astype(np.int64)
    positives, points = arrays["positives"].astype(float), int(arrays["points"])
    present = np.flatnonzero(positives.any(axis=0))

    def metric(bits: Sequence[int]) -> Metric:
        def mean(weights: np.ndarray) -> np.ndarray:
            values = []
            for c in present:
                own = category == c
                for bit in bits:
                    matched, ignored = (arrays[name][own] >> bit & 1 > 0 for name in ("matched", "ignored"))
                    values.append(detection_ap(matched, ignored, image[own], positives[:, c], points, weights))
            share = len(present) / positives.shape[1] if points != 101 else 1  # COCO leaves absent classes out
            return 100 * share * np.nanmean(np.stack(values), axis=0)

        return mean

    return {"AP": metric(range(len(IOUS))), "AP50": metric([0]), "AP75": metric([5])}, len(positives)


def _percent(metric: Metric) -> Metric:
    return lambda weights: 100 * metric(weights)


_METRICS = {"hits": _hits, "ranks": _ranks, "boxes": _boxes}
