"""VOC07 as the AdCo paper measured it (93.1 / 92.4): a linear classifier, scored per IMAGE, and per class beside it.

The paper's number is the mean over images of the AP over their classes. VOC's mAP is the mean over classes of the AP
over images. Both are computed here from the same predictions, so that everyone sees how far apart they lie.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from adco.evaluation.bootstrap import (
    REPLICATES,
    average_precision,
    in_percent,
    interval,
    sample_average_precision,
    weighted_mean,
)
from adco.evaluation.predictions import write_ranks
from adco.evaluation.records import Score
from adco.utils import distributed
from transfer.classifier.dataset import VOC_PX, Labelled
from transfer.classifier.engine import TrainingSetup, evaluate, train, with_weights
from transfer.classifier.protocols import VOC_ADCO
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
    """`sample_AP` (B,), NaN for an image without a positive class."""
    return {"sample_AP": torch.from_numpy(sample_average_precision(labels.numpy() == 1, logits.numpy()))}


def run(job: BenchmarkRun, voc: Voc, epochs: int | None) -> None:
    """Train on train, keep the epoch that is best on val, test with five crops, write the record."""
    start = time.perf_counter()
    px = VOC_PX if job.crop_px == CROP_PX else job.crop_px  # --image-px, when it is not the other protocols' own
    job = replace(job, crop_px=px, resize_px=usual_resize(px, STANDARD), standard=STANDARD)
    recipe = VOC_ADCO.shortened(epochs, None)
    say_what_data(voc)
    parts = {name: split(voc, name) for name in ("train", "val", "test")}
    name = job.protocol(recipe.name)
    folder = job.output_dir / name.replace("/", "-")
    plan = TrainingSetup(job.reader.device, job.reader.workers, px, job.resize_px, folder, job.seed,
                evaluations=recipe.epochs, max_bad_share=job.reader.max_bad_share)  # fmt: skip
    with enough_memory("choose a smaller --image-px"):
        trained = train(recipe, job.backbone, parts["train"], parts["val"], plan, by_image, keep_best="gap/sample_AP")
        network = with_weights(trained.network, trained.best)
        found = evaluate(network, parts["test"], plan, lambda logits, labels: {"logits": logits}, fit="five")
    if distributed.rank():
        return
    scores = both_metrics(found["gap"]["logits"], parts["test"].labels == 1, job.seed)
    for key, score in scores.items():
        print(f"{name}: {key} {in_percent(score)}")
    print("sample_AP is the mean over images of the AP over classes, the AdCo paper's number; mAP is VOC's")
    per_class = {f"AP/{c}": 100 * average_precision(parts["test"].labels[:, i] == 1, found["gap"]["logits"][:, i])
                 for i, c in enumerate(voc.classes) if parts["test"].labels[:, i].any()}  # fmt: skip
    settings = {
        "epochs": recipe.epochs,
        "best_on_val": max(trained.history, key=lambda row: (row["gap/sample_AP"], row["step"])),
        "history": trained.history,
        "statistics_moved": not trained.unmoved,
        "interval_replicates": REPLICATES,
        "trials": 1,
        "fit": "squash, five crops at test",
        "images_without_a_class": int((~parts["test"].labels.any(axis=1)).sum()),
        "pixel_mean": recipe.mean,
        "pixel_std": recipe.std,
    }
    test, logits = parts["test"], found["gap"]["logits"]
    keep = partial(write_ranks, names=test.images.paths, scores=logits, targets=test.labels == 1, by_image=True)
    job.write_record(recipe.name, scores | per_class, voc.describe(), settings, time.perf_counter() - start, keep)


def both_metrics(logits: np.ndarray, positive: np.ndarray, seed: int) -> dict[str, Score]:
    """(M, C) predictions and truth -> `sample_AP` and `mAP` in percent with their 95% intervals over images."""
    by_picture = weighted_mean(sample_average_precision(positive, logits))

    def by_class(weights: np.ndarray | None = None) -> np.ndarray:
        classes = [c for c in range(positive.shape[1]) if positive[:, c].any()]
        columns = [average_precision(positive[:, c], logits[:, c], weights) for c in classes]
        return np.nanmean(np.stack(columns), axis=0)

    once = np.ones((1, len(logits)))
    values = {"sample_AP": 100 * float(by_picture(once)[0]), "mAP": 100 * float(by_class())}
    metrics = {"sample_AP": by_picture, "mAP": by_class}
    ends = {name: interval(partial(_percent, metric), len(logits), seed) for name, metric in metrics.items()}
    return {name: Score.over_images(value, ends[name]) for name, value in values.items()}


def _percent(metric, weights: np.ndarray) -> np.ndarray:
    return 100 * metric(weights)
