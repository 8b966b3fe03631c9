"""What the commands that train classifiers share: from a protocol and two lists of images to a record."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from adco.evaluation.bootstrap import REPLICATES, hits_score, in_percent, top_k_hits
from adco.evaluation.predictions import write_hits
from adco.utils import distributed
from adco.utils.errors import UserError
from transfer.classifier.dataset import Labelled
from transfer.classifier.engine import train
from transfer.classifier.protocols import ClassifierProtocol
from transfer.classifier.state import Trained
from transfer.cli import BenchmarkRun, make_job, make_setup
from transfer.features.extract import enough_memory


def hits(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Compute which images are classified correctly.

    Args:
        logits: (B, C) on the CPU.
        labels: (B,) class numbers.

    Returns:
        `top1` and, with more than five classes, `top5`: (B,) float32, 1 where the label is among the k largest, else 0.
    """
    return {
        f"top{k}": torch.from_numpy(top_k_hits(logits.numpy(), labels.numpy(), k).astype("float32"))
        for k in (1, 5)
        if k < logits.shape[1]
    }


def run_protocol(
    args: argparse.Namespace,
    protocol: ClassifierProtocol,
    data: Labelled,
    val: Labelled,
    data_facts: Mapping[str, object],
    settings: Mapping[str, object],
) -> None:
    """Train, evaluate on val, print the scores, and write the record (rank 0).

    Args:
        args: the parsed arguments of `make_parser` and `add_training`.
        protocol: the published protocol; `--epochs`, `--train-batch` and `--bf16` change it and its name.
        data: the training images.
        val: the images of the score.
        data_facts: what the record says of the data.
        settings: settings of the record beside the protocol's own.

    Raises:
        UserError: there is one class only, or the ranks cannot share the batch evenly.
    """
    start, run = time.perf_counter(), make_job(args)
    protocol = protocol.shortened(args.epochs, args.train_batch)
    if args.bf16:
        protocol = replace(protocol, name=f"{protocol.name}-bf16")
    if len(data.classes) < 2:
        raise UserError(f"{data.images.root}: one class only; a classifier needs at least two class folders")
    with distributed.started(run.reader.device) as device:
        ranks = distributed.world_size()
        if protocol.batch % ranks:
            raise UserError(f"batch {protocol.batch} cannot be shared by {ranks} ranks; see --train-batch")
        setup = make_setup(args, run, device, run.protocol(protocol.name))
        share = f"{protocol.batch // ranks} images of {run.crop_px} px at a time"
        with enough_memory(f"{share}: choose a smaller --train-batch or --image-px, more ranks, or --bf16"):
            trained = train(protocol, run.backbone, data, val, setup, hits)
        if distributed.rank() == 0:
            report(run, protocol, trained, val, data_facts, settings, time.perf_counter() - start)


def report(
    run: BenchmarkRun,
    protocol: ClassifierProtocol,
    trained: Trained,
    val: Labelled,
    data_facts: Mapping[str, object],
    settings: Mapping[str, object],
    seconds: float,
) -> None:
    """Print the scores of the last evaluation, of each head and of the best one, and write the record."""
    all_hits = {
        name if len(trained.final) == 1 else f"{head}/{name}": hit
        for head, values in trained.final.items()
        for name, hit in values.items()
    }
    scores = {name: hits_score(hit, run.seed) for name, hit in all_hits.items()}
    for key, score in scores.items():
        print(f"{run.protocol(protocol.name)}: {key} {in_percent(score)}")
    if len(trained.final) > 1:
        best = max((key for key in scores if key.endswith("/top1")), key=scores.__getitem__)
        scores["top1"], all_hits["top1"] = scores[best], all_hits[best]
    settings = {**_settings(protocol, trained), **settings}
    write_predictions = partial(write_hits, names=val.images.paths, hits=all_hits)
    run.write_record(protocol.name, scores, data_facts, settings, seconds, write_predictions)


def _settings(protocol: ClassifierProtocol, trained: Trained) -> dict[str, object]:
    return {
        "lr": protocol.lr,
        "epochs": protocol.epochs,
        "iterations": protocol.iterations,
        "train_batch": protocol.batch,
        "weight_decay": protocol.weight_decay,
        "optimizer": protocol.optimizer,
        "feature": protocol.heads,
        "fit": protocol.fit,
        "backbone": protocol.backbone,
        "backbone_unmoved_sha256": trained.unmoved,
        "ranks": distributed.world_size(),
        "history": trained.history,
        "interval_replicates": REPLICATES,
        "trials": 1,
        "unreadable_training_pictures": dict(sorted(trained.bad.items())[:20]),
        "pixel_mean": protocol.mean,
        "pixel_std": protocol.std,
        "precision": "float32" if trained.network.precision is None else "bf16",
    }
