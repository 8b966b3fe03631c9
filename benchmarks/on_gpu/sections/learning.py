"""Section 11: AdCo and MoCo v2 learn side by side from the same images; kNN and a linear probe over epochs.

Both are trained in turns of a few epochs, so that they always have the same number. When the time is up their state is
in `work/learning`, and the next call resumes from it: 200 epochs of seed 0, then of seed 1.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.config.loading import load_recipe
from adco.config.schema import CheckpointConfig, DataConfig, PretrainConfig, ProbeConfig, ViewConfig
from adco.data.sources import open_images
from adco.evaluation.knn import knn_accuracy
from adco.train.knn_probe import NOTHING, EvalDataset, embed, evaluation_mode
from adco.train.trainer import Trainer
from adco.utils.device import resolve_workers
from adco.utils.files import write_text
from benchmarks.on_gpu.sections import Context
from benchmarks.speed.photographs import write_photographs

COMPARED, SEEDS = ("adco", "moco"), (0, 1)
EPOCHS, EVALUATED = 200, (1, 5, 10, 20, 30, 50, 100, 150, 200)
TURN = 5  # at most so many epochs at a time
BATCH, BASE_BATCH, WARMUP_EPOCHS = 256, 64, 2.0
PX, MOST = 64, 20_000  # of the evaluated images, as in the records of the small recipes
K, TEMPERATURE = 20, 0.07
MARGIN = 1.3  # the next turn may take so many times as long as the last
CHUNK = 512  # images at a time through the frozen network


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a backbone on images in the device's memory.

    Attributes:
        train: (N, 3, px, px) normalized training images.
        labels: (N,) their classes.
        val: (M, 3, px, px) normalized val images.
        truth: (M,) their classes.
        classes: How many classes there are.
    """

    train: Tensor
    labels: Tensor
    val: Tensor
    truth: Tensor
    classes: int

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        """Top-1 in percent by kNN and, where transfer/ can be imported, by a linear probe."""
        with evaluation_mode(backbone) as frozen, torch.no_grad():
            train, val = (torch.cat([frozen.forward(x) for x in part.split(CHUNK)]) for part in (self.train, self.val))
        unit = F.normalize(train, dim=1), self.labels, F.normalize(val, dim=1), self.truth
        return {
            "knn_top1": knn_accuracy(*unit, min(K, len(train)), TEMPERATURE, self.classes),
            "linear_top1": linear_top1(train, self.labels, val, self.truth, self.classes),
        }


def run(context: Context) -> None:
    """Train and evaluate until the time is up or both seeds have all their epochs."""
    data, ends = context.data, tuple(turns())
    if data is None and not context.small:
        context.skip("learning", "it needs images to learn from: --data FOLDER with train/CLASS and val/CLASS")
        return
    if context.small:
        data, ends = few_images(context.work / "few_images"), (1, 2)
    evaluator = load_evaluator(data, context.device, 32 if context.small else PX)
    known = report_known(context)
    for seed in SEEDS[:1] if context.small else SEEDS:
        runs = {}
        for method in COMPARED:
            recipe = small(recipe_of(method, seed, data)) if context.small else recipe_of(method, seed, data)
            runs[method] = Trainer(recipe, folder_of(context, seed, method), context.device, resume=True)
        if not learn(context, runs, evaluator, ends, known):
            return


def learn(
    context: Context, runs: Mapping[str, Trainer], evaluator: Evaluator, ends: Sequence[int], known: dict
) -> bool:
    """Train all runs to each of `ends` (epochs) in turn, and evaluate them there.

    The time of a turn is estimated from the turn before it: its epochs, and the evaluation.

    Args:
        context: The section's.
        runs: The trainers by method.
        evaluator: Evaluates a backbone.
        ends: After which epochs the methods take turns.
        known: The scores so far; new ones are added.

    Returns:
        False when the next turn would not fit into the time that is left.
    """
    seconds_an_epoch = seconds_to_evaluate = 0.0
    for before, end in pairwise((0, *ends)):
        need = (end - before) * seconds_an_epoch + (end in EVALUATED) * seconds_to_evaluate
        if any(run.step < end * run.steps_per_epoch for run in runs.values()) and MARGIN * need >= context.left():
            context.report("state", f"{before} of {ends[-1]} epochs; the next call resumes", next_turn_seconds=need)
            return False
        begin = time.monotonic()
        speeds = {method: train_to(run, end) for method, run in runs.items()}
        trained = time.monotonic()
        if any(speeds.values()):
            seconds_an_epoch = (trained - begin) / (end - before)
        for method, run in runs.items():
            key = f"seed{run.recipe.seed}/{method}/epoch{end}"
            if (end in EVALUATED or end == ends[-1]) and key not in known and run.step == end * run.steps_per_epoch:
                known[key] = evaluator(run.method.encoder.backbone) | {"images_per_second": speeds[method]}
                report(context, key, known[key])
                write_text(known_file(context), json.dumps(known, indent=1))
                seconds_to_evaluate = time.monotonic() - trained
    return True


def train_to(run: Trainer, epoch: int) -> float | None:
    """Train to the end of an epoch and write a checkpoint; returns images per second, None when it was done before."""
    first, seconds = run.step, run.seconds
    run.steps = epoch * run.steps_per_epoch  # where `fit` ends; learning rates are those of the recipe's epochs
    if first >= run.steps:
        return None
    run.fit()
    return (run.step - first) * run.recipe.batch / (run.seconds - seconds)


def turns(epochs: int = EPOCHS) -> list[int]:
    """The epochs after which the methods take turns: every TURN, and those at which they are evaluated."""
    return sorted({*range(TURN, epochs + 1, TURN), *(epoch for epoch in EVALUATED if epoch <= epochs)})


def recipe_of(method: str, seed: int, data: Path) -> PretrainConfig:
    """The method's Imagenette recipe for 200 epochs with batches of 256 on a GPU: learning rates in proportion to the
    batch, a longer warm-up, decoded images in memory, bf16, and no probe but this section's."""
    recipe = load_recipe(f"{method}_r18_imagenette")
    scale, optimizer = BATCH / BASE_BATCH, recipe.optimizer
    optimizer = replace(optimizer, lr=scale * optimizer.lr, final_lr=scale * optimizer.final_lr)
    return replace(
        recipe,
        epochs=EPOCHS,
        batch=BATCH,
        seed=seed,
        data=DataConfig(root=str(data), in_memory=True),
        optimizer=replace(optimizer, warmup_epochs=WARMUP_EPOCHS),
        compute=replace(recipe.compute, precision="bf16"),
        probe=ProbeConfig(every_epochs=0),
        checkpoint=CheckpointConfig(every_epochs=EPOCHS, keep=1),  # and wherever `fit` ends
    )


def small(recipe: PretrainConfig) -> PretrainConfig:
    """The recipe in miniature, for a CPU: two epochs of a few small images."""
    return replace(
        recipe,
        epochs=2,
        batch=8,
        views=[ViewConfig(px=16)] * 2,
        data=replace(recipe.data, workers=0),
        encoder=replace(recipe.encoder, dim=16),
        bank=replace(recipe.bank, size=32),
        optimizer=replace(recipe.optimizer, warmup_epochs=0.5),
        compute=replace(recipe.compute, precision="float32"),
        checkpoint=CheckpointConfig(every_epochs=2, keep=1),
    )


def few_images(root: Path) -> Path:
    """Draw `root/train` and `root/val`: photographs of 48 x 36 pixels in two classes."""
    for split, count in (("train", 24), ("val", 12)):
        write_photographs(root / split, count, classes=2, width=48, height=36)
    return root


def load_evaluator(data: Path, device: torch.device, px: int) -> Evaluator:
    """Decode the centre crops of `data`'s train and val images; of more than MOST, some that are evenly spaced."""
    indices, parts = [open_images(str(data), split) for split in ("train", "val")], []
    for index in indices:
        images, labels = embed(nn.Identity(), EvalDataset(index, px, MOST), device, resolve_workers("auto", device))
        parts += [images[labels != NOTHING], labels[labels != NOTHING]]
    return Evaluator(*parts, len(indices[0].classes))


def linear_top1(train: Tensor, labels: Tensor, val: Tensor, truth: Tensor, classes: int) -> float | None:
    """Top-1 in percent of transfer/linear.py's probe, its learning rate and weight decay chosen on a tenth of the
    training images. None where transfer/ cannot be imported (a machine with torch alone).

    Args:
        train: (N, D) features.
        labels: (N,) classes.
        val: (M, D) features.
        truth: (M,) classes.
        classes: How many classes there are.
    """
    try:
        from transfer.linear import choose, standardiser, sweep
    except ImportError:
        return None
    standardise = standardiser(train.cpu().numpy(), train.device)
    x, numbers = standardise(train.cpu().numpy()), labels.cpu().numpy()
    rate, decay, _ = choose(x, numbers, classes, 0)
    logits = sweep(x, labels, classes, (rate,), (decay,), 0).logits(standardise(val.cpu().numpy()), 0)
    return 100.0 * float((logits.argmax(axis=1) == truth.cpu().numpy()).mean())


def folder_of(context: Context, seed: int, method: str) -> Path:
    """The folder of a run's checkpoints, kept between calls."""
    return context.work / "learning" / f"seed{seed}" / method


def known_file(context: Context) -> Path:
    """The file with the scores of this call and those before."""
    return context.work / "learning" / "scores.json"


def report_known(context: Context) -> dict[str, dict[str, float | None]]:
    """Report the scores of earlier calls; returns them by `seedN/METHOD/epochN`."""
    path = known_file(context)
    known = json.loads(path.read_text()) if path.is_file() else {}
    for key, scores in known.items():
        report(context, key, scores)
    return known


def report(context: Context, key: str, scores: Mapping[str, float | None]) -> None:
    """Report each score as a figure that is named by run and epoch."""
    for name, value in scores.items():
        if value is not None:
            context.report(f"{key}/{name}", value, "images/s" if name == "images_per_second" else "%")
