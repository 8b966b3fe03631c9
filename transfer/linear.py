"""A linear probe on cached features: every learning rate and weight decay at once, in one pass over the features.

This is `linear/cached-features`, a quick test of a backbone. It is NOT the papers' ImageNet-linear protocol (that is
transfer/imagenet.py): there are no random crops or flips, and the features are standardised. All classifiers of the
sweep see the same batches. The learning rate and weight decay are chosen on a tenth of the training images, never on
val, and the record has the results of all pairs. Compare its numbers with one another only.

python transfer/linear.py --checkpoint CHECKPOINT --data IMAGENET --output-dir results
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
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
from transfer.cli import add_protocols, make_job, make_parser, select_protocols
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
    """The S linear classifiers of a grid of learning rates and weight decays.

    Attributes:
        weight: (S, D, C).
        bias: (S, 1, C).
        rates: (S,) learning rates.
        decays: (S,) weight decays.
    """

    weight: Tensor
    bias: Tensor
    rates: Tensor
    decays: Tensor

    def logits(self, x: Tensor, at: int) -> np.ndarray:
        """Compute the logits (N, C) of classifier `at` for features (N, D)."""
        return (x @ self.weight[at] + self.bias[at]).cpu().numpy()


def sweep(x: Tensor, labels: Tensor, classes: int, rates: Sequence[float], decays: Sequence[float], seed: int) -> Sweep:
    """Train a classifier for every pair of learning rate and weight decay, all on the same batches.

    SGD with momentum from zero weights on the mean cross-entropy, the learning rate by a cosine to zero. Each
    classifier is the one that training it alone would give.

    Args:
        x: (N, D) float32 features.
        labels: (N,) class numbers.
        classes: their number C.
        rates: learning rates.
        decays: weight decays, of the weights and not of the biases, added to the gradient as in torch's SGD.
        seed: of the order of the samples.

    Returns:
        The classifiers, those of one learning rate after one another.
    """
    grid = [(rate, decay) for rate in rates for decay in decays]
    lr, decay = (x.new_tensor(column)[:, None, None] for column in zip(*grid, strict=True))
    weight, bias = x.new_zeros(len(grid), x.shape[1], classes), x.new_zeros(len(grid), 1, classes)
    momentum, bias_momentum = torch.zeros_like(weight), torch.zeros_like(bias)
    targets = torch.nn.functional.one_hot(labels, classes).to(x)
    steps = -(-len(x) // BATCH)
    with progress(EPOCHS, "sweeping", "epochs") as bar:
        for epoch in range(EPOCHS):
            order = torch.from_numpy(philox.permutation(seed, epoch, len(x))).to(x.device)
            for step, batch in enumerate(order.split(BATCH)):
                lr_factor = 0.5 * (1 + math.cos(math.pi * (epoch + step / steps) / EPOCHS))
                # gradient of the mean cross-entropy by the logits: (S, B, C)
                error = ((x[batch] @ weight + bias).softmax(dim=-1) - targets[batch]) / len(batch)
                momentum.mul_(MOMENTUM).add_(x[batch].T @ error + decay * weight)
                bias_momentum.mul_(MOMENTUM).add_(error.sum(dim=1, keepdim=True))
                weight -= lr_factor * lr * momentum
                bias -= lr_factor * lr * bias_momentum
            bar.update()
    return Sweep(weight, bias, lr.flatten(), decay.flatten())


def held_out_rows(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose images to hold out.

    Args:
        labels: (N,) class numbers.
        share: of each class; at least one image of a class that has two or more.
        seed: determines the choice.

    Returns:
        (N,) bool.
    """
    generator, held = np.random.default_rng(seed), np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        images = generator.permutation(np.flatnonzero(labels == label))
        held[images[: max(round(share * len(images)), 1 if len(images) > 1 else 0)]] = True
    return held


def choose(x: Tensor, labels: np.ndarray, classes: int, seed: int) -> tuple[float, float, list[dict[str, float]]]:
    """Choose learning rate and weight decay by the top-1 accuracy on held-out training images.

    Args:
        x: (N, D) float32 standardised features of the training images.
        labels: (N,) class numbers.
        classes: their number.
        seed: of the held-out images and of the training.

    Returns:
        The learning rate and weight decay of the best accuracy (of equal ones the smaller rate), and the accuracies in
        percent of all pairs.
    """
    held = held_out_rows(labels, HELD_OUT, seed)
    y, inside = torch.from_numpy(labels).to(x.device), torch.from_numpy(~held).to(x.device)
    made = sweep(x[inside], y[inside], classes, LEARNING_RATES, WEIGHT_DECAYS, seed)
    curve = []
    for at, (rate, decay) in enumerate((r, d) for r in LEARNING_RATES for d in WEIGHT_DECAYS):
        top1 = 100 * float(top_k_hits(made.logits(x[~inside], at), labels[held]).mean())
        curve.append({"lr": rate, "weight_decay": decay, "held_out_top1": top1})
    best = max(curve, key=lambda row: row["held_out_top1"])
    return best["lr"], best["weight_decay"], curve


def standardiser(features: np.ndarray, device: torch.device) -> Callable[[np.ndarray], Tensor]:
    """Make a function that standardises features by the statistics of the given ones.

    Args:
        features: (N, D), which get mean 0 and standard deviation 1 in each dimension; a constant dimension becomes 0.
        device: where the function's results lie.

    Returns:
        (M, D) -> (M, D) float32.
    """
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-8)
    return lambda x: torch.from_numpy(((x - mean) * scale).astype(np.float32)).to(device)


def probe(train: Split, val: Split, classes: int, seed: int, device: torch.device) -> tuple[dict, dict, dict]:
    """Choose the rates on training images, train on all of them, and test on val.

    Args:
        train: the training split.
        val: the split that the scores are measured on.
        classes: number of classes.
        seed: of held-out images, training and intervals.
        device: where to compute.

    Returns:
        `top1` and `top5` in percent; the settings; and (N,) bool of val's images for each score, which are correct.
    """
    standardised = standardiser(train.features, device)
    x, y = standardised(train.features), torch.from_numpy(train.labels).to(device)
    rate, decay, curve = choose(x, train.labels, classes, seed)
    logits = sweep(x, y, classes, (rate,), (decay,), seed).logits(standardised(val.features), 0)
    hits = {f"top{n}": top_k_hits(logits, val.labels, n) for n in (1, 5) if n < classes}
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
    """Train and test the probe on the features of one pass, and write a record."""
    parser = make_parser(__doc__, "a folder with train/CLASS/IMAGE and val/CLASS/IMAGE")
    add_protocols(parser, "cached-features")
    args = parser.parse_args(argv)
    if not select_protocols(args.protocol, "cached-features", ABOUT):
        return 0
    run, folders = make_job(args), read_folders(args.data)
    if len(folders[0].classes) < 2:
        raise UserError(f"{folders[0].root}: one class only; a probe needs at least two class folders")
    splits = labelled_features(run, args.data, folders, Feature(run.transform("center")))
    start = time.perf_counter()
    scores, settings, hits = probe(splits.train, splits.val, len(splits.classes), run.seed, run.reader.device)
    name = run.protocol("linear/cached-features")
    print(f"{'lr':>8} {'decay':>8} held-out top-1, %")
    for row in settings["curve"]:
        print(f"{row['lr']:>8g} {row['weight_decay']:>8g} {row['held_out_top1']:.2f}")
    for key, score in scores.items():
        print(f"{name}: {key} {in_percent(score)}")
    if settings["lr_at_edge_of_grid"]:
        print(f"note: the chosen learning rate {settings['lr']:g} is at the edge of the grid")
    settings["pictures_computed"] = splits.computed
    seconds = splits.seconds + time.perf_counter() - start
    write_predictions = partial(write_hits, names=splits.val.names, hits=hits)
    run.write_record("linear/cached-features", scores, splits.data, settings, seconds, write_predictions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
