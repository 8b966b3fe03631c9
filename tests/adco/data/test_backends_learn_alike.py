"""The native backend against torchvision's pipeline where it matters: what a network learns from their views.

Both backends give the same choices to the same start; the networks part only because of pixels within two levels.
"""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adco.config.schema import ViewConfig
from adco.data import native
from adco.data.images import ImageIndex, index_folder
from adco.data.loader import ViewDataset, batches, requests
from adco.evaluation.knn import knn_accuracy
from adco.sample import make_sample

CPU = torch.device("cpu")
PX, BATCH, TAU, K = 48, 128, 0.2, 10
SPECS = [ViewConfig(px=PX), ViewConfig(px=PX)]
PLAIN = [ViewConfig(px=PX, scale=[1.0, 1.0], jitter_p=0.0, gray_p=0.0, blur_p=0.0, flip_p=0.0)]


def encoder() -> nn.Sequential:
    """A convolutional network small enough to train in seconds: (B, 3, 48, 48) -> (B, 256)."""
    layers, width = [], 3
    for wider in (32, 64, 128, 256):
        layers += [nn.Conv2d(width, wider, 3, 2, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def trained(index: ImageIndex, backend: str, seed: int, epochs: int) -> nn.Sequential:
    """SimCLR on the index for a few epochs."""
    torch.manual_seed(seed)
    network, head = encoder(), nn.Linear(256, 64)
    optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], 1e-3)
    steps = epochs * (len(index) // BATCH)
    dataset = ViewDataset(index, SPECS, seed, 0, backend)
    for batch in batches(dataset, requests(seed, len(index), BATCH, 0, steps), 1, CPU):
        z = F.normalize(head(network(torch.cat(batch.to_views(CPU)))), dim=1)
        logits = (z @ z.T / TAU).fill_diagonal_(-math.inf)
        loss = F.cross_entropy(logits, torch.arange(2 * BATCH).roll(BATCH))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.inference_mode()
def features(network: nn.Module, index: ImageIndex) -> torch.Tensor:
    """Unit features of every image, squashed to 48 px, in the index's order."""
    dataset = ViewDataset(index, PLAIN, 0, 0, "native")
    count = len(index) // 2
    order = torch.from_numpy(next(requests(0, len(index), len(index), 0, 1)).samples)
    rows = [network(b.to_views(CPU)[0]) for b in batches(dataset, requests(0, len(index), count, 0, 2), 1, CPU)]
    embeddings = torch.empty(len(index), 256)
    embeddings[order[: 2 * count]] = F.normalize(torch.cat(rows), dim=1)
    return embeddings


def knn(network: nn.Module, train: ImageIndex, val: ImageIndex) -> float:
    """Percent of val images whose class their neighbours in train vote for."""
    labels = torch.tensor(train.labels), torch.tensor(val.labels)
    return knn_accuracy(
        features(network, train), labels[0], features(network, val), labels[1], K, 0.07, len(train.classes)
    )


def compare(
    train: ImageIndex, val: ImageIndex, seeds: int, epochs: int
) -> tuple[list[float], list[float], float, float]:
    """kNN of the native and of the reference backend by seed, of an untrained network, and the 95% half-interval of
    the difference of the means: seeds' spread and the finite val set."""
    ours, theirs = (
        [knn(trained(train, backend, s, epochs), train, val) for s in range(seeds)]
        for backend in ("native", "reference")
    )
    torch.manual_seed(0)
    untrained = knn(encoder().eval(), train, val)
    variance = sum(statistics.variance(part) for part in (ours, theirs)) / seeds
    share = statistics.fmean(ours + theirs) / 100
    variance += 2 * 1e4 * share * (1 - share) / (len(val) * seeds)
    return ours, theirs, untrained, 1.96 * math.sqrt(variance)


@pytest.mark.slow
@pytest.mark.skipif(not native.available(), reason="the C kernel is not built: no compiler at install")
def test_networks_trained_on_native_and_on_torchvisions_views_are_equally_good(tmp_path):
    make_sample(tmp_path / "sample", 0, 600)
    train, val = (index_folder(tmp_path / "sample" / "imagenet" / split) for split in ("train", "val"))
    ours, theirs, untrained, interval = compare(train, val, seeds=3, epochs=8)
    assert statistics.fmean(theirs) > untrained + 2  # there was something to learn
    assert abs(statistics.fmean(ours) - statistics.fmean(theirs)) < interval
