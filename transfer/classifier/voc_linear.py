"""VOC07 as the AdCo paper measured it (93.1 / 92.4): a linear classifier, scored per IMAGE, and per class beside it.

The paper's number is the mean over images of the AP over their classes. VOC's mAP is the mean over classes of the AP
over images. Both are computed here from the same predictions, so that the difference is visible.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from adco.evaluation.average_precision import average_precision, sample_average_precision, weighted_mean
from adco.evaluation.bootstrap import REPLICATES, in_percent, interval
from adco.evaluation.predictions import write_ranks
from adco.evaluation.records import Score
from adco.utils import distributed
from transfer.classifier.dataset import VOC_PX, Labelled
from transfer.classifier.engine import evaluate, train
from transfer.classifier.protocols import VOC_ADCO, ClassifierProtocol
from transfer.classifier.state import Trained, TrainingSetup, with_weights
from transfer.cli import BenchmarkRun, usual_resize
from transfer.features.extract import enough_memory
from transfer.features.reading import ImageList
from transfer.features.transforms import CROP_PX
from transfer.voc import Voc, say_what_data

ABOUT = VOC_ADCO.about
STANDARD = (VOC_PX, 330)


def split(voc: Voc, name: str) -> Labelled:
    """One split's images with (N, C) labels of 1 and 0; a difficult class is a 0, as in the released code."""
    paths = tuple(f"JPEGImages/{voc.ids[row]}.jpg" for row in voc.rows[name])
    return Labelled(ImageList(voc.root, paths, name), (voc.labels[name] == 1).astype(np.int64), voc.classes)


def by_image(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Compute the AP of each image over its classes.

    Args:
        logits: (B, C) on the CPU.
        labels: (B, C) of 1 and 0.

    Returns:
        `sample_AP`: (B,) in [0, 1], NaN for an image without a positive class.
    """
    return {"sample_AP": torch.from_numpy(sample_average_precision(labels.numpy() == 1, logits.numpy()))}


def train_and_test(run: BenchmarkRun, voc: Voc, epochs: int | None) -> None:
    """Train on train, take the epoch that is best on val, test with five crops, and write the record (rank 0).

    Args:
        run: the checkpoint and where results go.
        voc: VOC2007 with the splits train, val and test.
        epochs: another length than the protocol's, which becomes part of its name; None for the protocol's.

    Raises:
        UserError: an image cannot be read, or the memory is too small.
    """
    start = time.perf_counter()
    px = VOC_PX if run.crop_px == CROP_PX else run.crop_px  # 300, unless --image-px was given
    run = replace(run, crop_px=px, resize_px=usual_resize(px, STANDARD), standard=STANDARD)
    protocol = VOC_ADCO.shortened(epochs, None)
    say_what_data(voc)
    parts = {name: split(voc, name) for name in ("train", "val", "test")}
    test, name = parts["test"], run.protocol(protocol.name)
    folder = run.output_dir / name.replace("/", "-")
    setup = TrainingSetup(run.reader.device, run.reader.workers, px, run.resize_px, folder, run.seed,
                          evaluations=protocol.epochs, max_bad_share=run.reader.max_bad_share)  # fmt: skip
    with enough_memory("choose a smaller --image-px"):
        trained = train(protocol, run.backbone, parts["train"], parts["val"], setup, by_image, "gap/sample_AP")
        network = with_weights(trained.network, trained.best)
        outputs = evaluate(network, test, setup, lambda logits, labels: {"logits": logits}, fit="five")
    if distributed.rank():
        return
    logits, positive = outputs["gap"]["logits"], test.labels == 1
    scores = both_metrics(logits, positive, run.seed)
    for key, score in scores.items():
        print(f"{name}: {key} {in_percent(score)}")
    print("sample_AP is the mean over images of the AP over classes, the AdCo paper's number; mAP is VOC's")
    class_scores = {f"AP/{c}": 100 * float(average_precision(positive[:, i], logits[:, i]))
                    for i, c in enumerate(voc.classes) if positive[:, i].any()}  # fmt: skip
    settings = _settings(protocol, trained, int((~positive.any(axis=1)).sum()))
    keep = partial(write_ranks, names=test.images.paths, scores=logits, targets=positive, by_image=True)
    run.write_record(
        protocol.name, {**scores, **class_scores}, voc.describe(), settings, time.perf_counter() - start, keep
    )


def _settings(protocol: ClassifierProtocol, trained: Trained, images_without_a_class: int) -> dict[str, object]:
    return {
        "epochs": protocol.epochs,
        "best_on_val": max(trained.history, key=lambda row: (row["gap/sample_AP"], row["step"])),
        "history": trained.history,
        "statistics_moved": not trained.unmoved,
        "interval_replicates": REPLICATES,
        "trials": 1,
        "fit": "squash, five crops at test",
        "images_without_a_class": images_without_a_class,
        "pixel_mean": protocol.mean,
        "pixel_std": protocol.std,
    }


def both_metrics(logits: np.ndarray, positive: np.ndarray, seed: int) -> dict[str, Score]:
    """Compute both means of the AP from the same predictions.

    Args:
        logits: (M, C).
        positive: (M, C) bool, the truth.
        seed: the seed of the bootstrap.

    Returns:
        `sample_AP` and `mAP` in percent, with their 95% intervals over the images.
    """
    per_image = weighted_mean(sample_average_precision(positive, logits))

    def per_class(weights: np.ndarray | None = None) -> np.ndarray:
        """mAP, or (B,) of it for (B, M) weights."""
        classes = [c for c in range(positive.shape[1]) if positive[:, c].any()]
        columns = [average_precision(positive[:, c], logits[:, c], weights) for c in classes]
        return np.nanmean(np.stack(columns), axis=0)

    once = np.ones((1, len(logits)))  # every image counts once
    values = {"sample_AP": 100 * float(per_image(once)[0]), "mAP": 100 * float(per_class())}
    metrics = {"sample_AP": per_image, "mAP": per_class}
    ends = {name: interval(partial(_percent, metric), len(logits), seed) for name, metric in metrics.items()}
    return {name: Score.over_images(value, ends[name]) for name, value in values.items()}


def _percent(metric: Callable[[np.ndarray], np.ndarray], weights: np.ndarray) -> np.ndarray:
    return 100 * metric(weights)
