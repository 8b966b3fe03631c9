"""What the command lines that train on labelled images share: from a recipe and two lists of images to a record."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from adco.evaluation.bootstrap import REPLICATES, hits_score, in_percent, top_k_hits
from adco.evaluation.predictions import write_hits
from adco.utils import distributed
from adco.utils.errors import UserError
from transfer.classifier.dataset import Labelled
from transfer.classifier.engine import Trained, train
from transfer.classifier.protocols import ClassifierProtocol
from transfer.cli import BenchmarkRun, explain, make_job, make_plan
from transfer.features.extract import enough_memory


def hits(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`top1` and, with more than five classes, `top5`: (B,) 1 where the label is among the largest, else 0."""
    return {
        f"top{k}": torch.from_numpy(top_k_hits(logits.numpy(), labels.numpy(), k).astype("float32"))
        for k in (1, 5)
        if k < logits.shape[1]
    }


def chosen(names: Sequence[str], recipes: Mapping[str, ClassifierProtocol]) -> list[tuple[str, ClassifierProtocol]]:
    """The recipes by name, each once. Raises UserError for a name that is none."""
    for name in names:
        if name not in recipes:
            raise UserError(f"--protocol {name}: not known; choose {', '.join(recipes)}, or list to read of them")
    return [(name, recipes[name]) for name in dict.fromkeys(names)]


def listed(args: argparse.Namespace, recipes: Mapping[str, ClassifierProtocol]) -> bool:
    """Answer `--protocol list`."""
    if "list" not in (args.protocol or ()):
        return False
    print(explain({name: recipe.about for name, recipe in recipes.items()}))
    return True


def run_recipe(
    args: argparse.Namespace, recipe: ClassifierProtocol, data: Labelled, val: Labelled, about: dict, more: dict
):
    """Train, look at val, print, and write the record (rank 0): top-1 and top-5 of the last step for each head.

    about: what the record says of the data; more: further settings.
    """
    start, job = time.perf_counter(), make_job(args)
    recipe = recipe.shortened(args.epochs, args.train_batch)
    if args.bf16:
        recipe = replace(recipe, name=f"{recipe.name}-bf16")
    if len(data.classes) < 2:
        raise UserError(f"{data.images.root}: one class only; a classifier needs at least two class folders")
    with distributed.started(job.reader.device) as device:
        if recipe.batch % distributed.world_size():
            raise UserError(
                f"batch {recipe.batch} cannot be shared by {distributed.world_size()} ranks; see --train-batch"
            )
        plan = make_plan(args, job, device, job.protocol(recipe.name))
        share = f"{recipe.batch // distributed.world_size()} images of {job.crop_px} px at a time"
        with enough_memory(f"{share}: choose a smaller --train-batch or --image-px, more ranks, or --bf16"):
            trained = train(recipe, job.backbone, data, val, plan, hits)
        if distributed.rank() == 0:
            report(job, recipe, trained, val, about, more, time.perf_counter() - start)


def report(
    job: BenchmarkRun,
    recipe: ClassifierProtocol,
    trained: Trained,
    val: Labelled,
    about: dict,
    more: dict,
    seconds: float,
) -> None:
    """Print and write what a run came to."""
    found = {
        name if len(trained.final) == 1 else f"{head}/{name}": hit
        for head, values in trained.final.items()
        for name, hit in values.items()
    }
    scores = {name: hits_score(hit, job.seed) for name, hit in found.items()}
    for key, score in scores.items():
        print(f"{job.protocol(recipe.name)}: {key} {in_percent(score)}")
    if len(trained.final) > 1:
        best = max((key for key in scores if key.endswith("/top1")), key=scores.get)
        scores["top1"], found["top1"] = scores[best], found[best]
    settings = {
        "lr": recipe.lr,
        "epochs": recipe.epochs,
        "iterations": recipe.iterations,
        "train_batch": recipe.batch,
        "weight_decay": recipe.weight_decay,
        "optimizer": recipe.optimizer,
        "feature": recipe.heads,
        "fit": recipe.fit,
        "backbone": recipe.backbone,
        "backbone_unmoved_sha256": trained.unmoved,
        "ranks": distributed.world_size(),
        "history": trained.history,
        "interval_replicates": REPLICATES,
        "trials": 1,
        "unreadable_training_pictures": dict(sorted(trained.bad.items())[:20]),
        "pixel_mean": recipe.mean,
        "pixel_std": recipe.std,
        "precision": "float32" if trained.network.precision is None else "bf16",
    }
    keep = partial(write_hits, names=val.images.paths, hits=found)
    job.write_record(recipe.name, scores, about, settings | more, seconds, keep)
