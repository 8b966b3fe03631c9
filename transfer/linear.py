"""A linear probe on cached features: every learning rate and weight decay at once, in one pass over the features.

This is `linear/cached-features`, a quick look at a backbone. It is NOT the papers' ImageNet-linear protocol (that is
transfer/imagenet.py): there are no random crops or flips, and the features are standardised. All classifiers of the
sweep see the same batches; the pair is chosen on a tenth of the training images, never on val, and the whole curve is
in the record. Compare its numbers with one another only.

python transfer/linear.py --checkpoint CHECKPOINT --data IMAGENET --output-dir results
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run from a checkout, without installation

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from adco.evaluation.bootstrap import REPLICATES, hits_score, in_percent, top_k_hits
from adco.evaluation.predictions import write_hits
from adco.utils import philox
from adco.utils.errors import UserError, command
from adco.utils.progress import progress
from transfer.cli import add_protocols, make_job, make_parser, only_listed
from transfer.features.extract import Feature
from transfer.features.image_folder import Split, labelled_features, read_folders

LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
WEIGHT_DECAYS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2)
EPOCHS, BATCH, MOMENTUM = 50, 256, 0.9
HELD_OUT = 0.1
ABOUT = {
    "cached-features": "Softmax on standardised, average-pooled features of one centre crop: SGD, cosine, 50 epochs;\n"
    "learning rate x weight decay swept in one pass and chosen on a tenth of the training images."
}


@dataclass(frozen=True)
class Sweep:
    """Classifiers of every (learning rate, weight decay). weight: (S, D, C), bias: (S, 1, C); rates, decays: (S,)."""

    weight: Tensor
    bias: Tensor
    rates: Tensor
    decays: Tensor

    def logits(self, x: Tensor, at: int) -> np.ndarray:
        """(N, D) -> (N, C) of one classifier."""
        return (x @ self.weight[at] + self.bias[at]).cpu().numpy()


def sweep(x: Tensor, labels: Tensor, classes: int, rates: Sequence[float], decays: Sequence[float], seed: int) -> Sweep:
    """SGD with momentum from zero on the mean cross-entropy, cosine to zero, all classifiers on the same batches.

    x: (N, D) rows; labels: (N,). Weight decay is on the weights alone, as a gradient (torch's SGD). A classifier is the
    one that training it alone would give.
    """
    grid = [(rate, decay) for rate in rates for decay in decays]
    lr, decay = (x.new_tensor(column)[:, None, None] for column in zip(*grid, strict=True))
    weight, bias = x.new_zeros(len(grid), x.shape[1], classes), x.new_zeros(len(grid), 1, classes)
    speed, bias_speed = torch.zeros_like(weight), torch.zeros_like(bias)
    targets = torch.nn.functional.one_hot(labels, classes).to(x)
    steps = -(-len(x) // BATCH)
    with progress(EPOCHS, "sweeping", "epochs") as bar:
        for epoch in range(EPOCHS):
            order = torch.from_numpy(philox.permutation(seed, epoch, len(x))).to(x.device)
            for step, rows in enumerate(order.split(BATCH)):
                share = 0.5 * (1 + math.cos(math.pi * (epoch + step / steps) / EPOCHS))
                error = ((x[rows] @ weight + bias).softmax(dim=-1) - targets[rows]) / len(rows)  # (S, B, C)
                speed.mul_(MOMENTUM).add_(x[rows].T @ error + decay * weight)
                bias_speed.mul_(MOMENTUM).add_(error.sum(dim=1, keepdim=True))
                weight -= share * lr * speed
                bias -= share * lr * bias_speed
            bar.update()
    return Sweep(weight, bias, lr.flatten(), decay.flatten())


def held_out_rows(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool: `share` of each class, at least one image of a class that has two or more; by the seed alone."""
    generator, held = np.random.default_rng(seed), np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held[rows[: max(round(share * len(rows)), 1 if len(rows) > 1 else 0)]] = True
    return held


def choose(x: Tensor, labels: np.ndarray, classes: int, seed: int) -> tuple[float, float, list[dict[str, float]]]:
    """The pair of the best top-1 on held-out training images (of equals the smaller rate), and the whole curve."""
    held = held_out_rows(labels, HELD_OUT, seed)
    y, inside = torch.from_numpy(labels).to(x.device), torch.from_numpy(~held).to(x.device)
    made = sweep(x[inside], y[inside], classes, LEARNING_RATES, WEIGHT_DECAYS, seed)
    curve = []
    for at, (rate, decay) in enumerate((r, d) for r in LEARNING_RATES for d in WEIGHT_DECAYS):
        top1 = 100 * float(top_k_hits(made.logits(x[~inside], at), labels[held]).mean())
        curve.append({"lr": rate, "weight_decay": decay, "held_out_top1": top1})
    best = max(curve, key=lambda row: row["held_out_top1"])
    return best["lr"], best["weight_decay"], curve


def standardiser(features: np.ndarray, device: torch.device):
    """A function to float32 rows with mean 0 and deviation 1 in each dimension of `features` (dead ones become 0)."""
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-8)
    return lambda rows: torch.from_numpy(((rows - mean) * scale).astype(np.float32)).to(device)


def probe(train: Split, val: Split, classes: int, seed: int, device: torch.device) -> tuple[dict, dict, dict]:
    """-> scores in percent on val, the settings that led to them, and `top1`, `top5`: which of val's images hit."""
    rows = standardiser(train.features, device)
    x, y = rows(train.features), torch.from_numpy(train.labels).to(device)
    rate, decay, curve = choose(x, train.labels, classes, seed)
    final = sweep(x, y, classes, (rate,), (decay,), seed).logits(rows(val.features), 0)
    hits = {f"top{n}": top_k_hits(final, val.labels, n) for n in (1, 5) if n < classes}
    scores = {name: hits_score(hit, seed) for name, hit in hits.items()}
    settings = {
        "lr": rate,
        "weight_decay": decay,
        "curve": curve,
        "lr_at_edge_of_grid": rate in (LEARNING_RATES[0], LEARNING_RATES[-1]),
        "held_out_share": HELD_OUT,
        "epochs": EPOCHS,
        "train_batch": BATCH,
        "feature": "gap, standardised",
        "fit": "center",
        "interval_replicates": REPLICATES,
        "trials": 1,
    }
    return scores, settings, hits


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, "a folder with train/CLASS/IMAGE and val/CLASS/IMAGE")
    add_protocols(parser, "cached-features")
    args = parser.parse_args(argv)
    if only_listed(args, ABOUT):
        return 0
    job, folders = make_job(args), read_folders(args.data)
    if len(folders[0].classes) < 2:
        raise UserError(f"{folders[0].root}: one class only; a probe needs at least two class folders")
    found = labelled_features(job, args.data, folders, Feature(job.transform("center")))
    start = time.perf_counter()
    scores, settings, hits = probe(found.train, found.val, len(found.classes), job.seed, job.reader.device)
    name = job.protocol("linear/cached-features")
    print(f"{'lr':>8} {'decay':>8} held-out top-1, %")
    for row in settings["curve"]:
        print(f"{row['lr']:>8g} {row['weight_decay']:>8g} {row['held_out_top1']:.2f}")
    for key, score in scores.items():
        print(f"{name}: {key} {in_percent(score)}")
    if settings["lr_at_edge_of_grid"]:
        print(f"note: the chosen learning rate {settings['lr']:g} is at the edge of the grid")
    settings["pictures_computed"] = found.computed
    seconds = found.seconds + time.perf_counter() - start
    keep = partial(write_hits, names=found.val.names, hits=hits)
    job.write_record("linear/cached-features", scores, found.data, settings, seconds, keep)
    return 0


if __name__ == "__main__":
    sys.exit(main())
