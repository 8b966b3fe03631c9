"""A linear probe on cached features: softmax regression on the average-pooled features of an image folder.

This is `linear/cached-features`, a quick look at a backbone. It is NOT the papers' ImageNet-linear protocol: there are
no random crops or flips, the features are standardised, and the optimiser is full-batch L-BFGS with an L2 penalty
chosen on a tenth of the training pictures, never on val. Compare its numbers with one another only.

python transfer/linear.py --checkpoint CHECKPOINT --data IMAGENET --output-dir results
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run from a checkout, without installation

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from adco.errors import UserError, command
from adco.progress import progress
from transfer.cli import make_job, make_parser
from transfer.features import Feature
from transfer.imagefolder import Split, labelled_features, read_folders
from transfer.metrics import top_k_percent

PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5)  # from the strongest: the first of equals is the simplest model
HELD_OUT = 0.1
MAX_ITERATIONS = 200


@dataclass(frozen=True)
class Probe:
    """Logits = x @ weight + bias. weight: (D, C), bias: (C,), float64. gradient: the largest entry left at the end."""

    weight: Tensor
    bias: Tensor
    iterations: int
    gradient: float

    def __call__(self, x: Tensor) -> np.ndarray:
        return (x @ self.weight + self.bias).cpu().numpy()


def fit_softmax(x: Tensor, labels: Tensor, classes: int, penalty: float, start: Probe | None = None) -> Probe:
    """Minimise mean cross-entropy + penalty / 2 |weight|^2 by full-batch L-BFGS; deterministic, from zero or `start`.

    x: (N, D) float64; labels: (N,). The objective is convex, so the start moves the time and not the answer.
    """
    weight = (start.weight if start else x.new_zeros(x.shape[1], classes)).clone().requires_grad_()
    bias = (start.bias if start else x.new_zeros(classes)).clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = cross_entropy(x @ weight + bias, labels) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    loss()
    gradient = max(weight.grad.abs().max().item(), bias.grad.abs().max().item())
    iterations = optimiser.state[weight]["n_iter"]
    return Probe(weight.detach(), bias.detach(), iterations, gradient)


def held_out_rows(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """(N,) bool: `share` of each class, at least one picture of a class that has two or more; by the seed alone."""
    generator, held = np.random.default_rng(seed), np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held[rows[: max(round(share * len(rows)), 1 if len(rows) > 1 else 0)]] = True
    return held


def choose_penalty(x: Tensor, labels: np.ndarray, classes: int, seed: int) -> tuple[float, dict[float, float]]:
    """The penalty of the best top-1 on held-out training pictures (the strongest of equals), and top-1 of each."""
    held = held_out_rows(labels, HELD_OUT, seed)
    y, inside = torch.from_numpy(labels).to(x.device), torch.from_numpy(~held).to(x.device)
    probe, table = None, {}
    with progress(len(PENALTIES), "choosing the penalty", "fits") as bar:
        for penalty in PENALTIES:
            probe = fit_softmax(x[inside], y[inside], classes, penalty, probe)
            table[penalty] = top_k_percent(probe(x[~inside]), labels[held])
            bar.update()
    return max(table, key=table.__getitem__), table


def standardiser(features: np.ndarray, device: torch.device):
    """A function to float64 rows with mean 0 and deviation 1 in each dimension of `features` (dead ones become 0)."""
    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-8)
    return lambda rows: torch.from_numpy((rows - mean) * scale).to(device)


def probe(train: Split, val: Split, classes: int, seed: int, device: torch.device) -> tuple[dict, dict]:
    """-> scores in percent on val, and the settings that led to them."""
    rows = standardiser(train.features, device)
    x = rows(train.features)
    penalty, table = choose_penalty(x, train.labels, classes, seed)
    final = fit_softmax(x, torch.from_numpy(train.labels).to(device), classes, penalty)
    logits = final(rows(val.features))
    scores = {f"top{n}": top_k_percent(logits, val.labels, n) for n in (1, 5) if n < classes}
    settings = {
        "penalty": penalty,
        "held_out_top1": {f"{key:g}": value for key, value in table.items()},
        "penalty_at_edge_of_grid": penalty in (PENALTIES[0], PENALTIES[-1]),
        "held_out_share": HELD_OUT,
        "iterations": final.iterations,
        "gradient": final.gradient,
        "feature": "gap, standardised",
        "fit": "center",
    }
    return scores, settings


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser(__doc__, "a folder with train/CLASS/IMAGE and val/CLASS/IMAGE").parse_args(argv)
    job, folders = make_job(args), read_folders(args.data)
    if len(folders[0].classes) < 2:
        raise UserError(f"{folders[0].root}: one class only; a probe needs at least two class folders")
    found = labelled_features(job, args.data, folders, Feature(job.transform("center")))
    begun = time.perf_counter()
    scores, settings = probe(found.train, found.val, len(found.classes), job.seed, job.reader.device)
    name = job.protocol("linear/cached-features")
    print(f"{name}: " + ", ".join(f"{key} {value:.2f} %" for key, value in scores.items()))
    if settings["penalty_at_edge_of_grid"]:
        print(f"note: the chosen penalty {settings['penalty']:g} is at the edge of the grid")
    settings["pictures_computed"] = found.computed
    seconds = found.seconds + time.perf_counter() - begun
    job.write_record("linear/cached-features", scores, found.data, settings, seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
