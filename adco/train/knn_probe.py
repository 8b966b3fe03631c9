"""The kNN probe: centre crops in a fixed order, embedded by all ranks together, and the accuracy of a kNN on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.data.eval_loader import NO_IMAGE, read_batches
from adco.data.images import ImageIndex
from adco.data.sources import open_images
from adco.data.transforms.evaluation import EvalTransform
from adco.data.transforms.functional import from_uint8
from adco.evaluation.knn import first_argmax, knn_predict
from adco.utils import distributed
from adco.utils.device import upload
from adco.utils.errors import UserError

NOTHING = -1  # the label where there is no image
BATCH = 256


class EvalDataset:
    """At most `most` images of an index, evenly spaced: number -> position in the index, and label.

    Attributes:
        index: the images and their labels.
        transform: shorter side to px * 256 / 224, then the central square of px.
        chosen: positions in `index`.
    """

    def __init__(self, index: ImageIndex, px: int, most: int):
        self.index, self.transform = index, EvalTransform("center", px, round(px * 256 / 224))
        self.chosen = range(0, len(index), max(1, -(-len(index) // most)))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> tuple[int, int]:
        return self.chosen[i], self.index.labels[self.chosen[i]]


@torch.no_grad()
def embed(
    network: Callable[[Tensor], Tensor], dataset: EvalDataset, device: torch.device, workers: int
) -> tuple[Tensor, Tensor]:
    """Embed this rank's share of the dataset: every `world_size`-th image, from number `rank` on.

    Args:
        network: (B, 3, px, px) normalised float32, channels last -> (B, C).
        dataset: the images.
        device: where the network runs.
        workers: threads that read images, 0 for none.

    Returns:
        Embeddings (M, C) and labels (M,) int64, both on the device, without gradient. M is the same on every rank.
        Where there is no image, or it cannot be read, the label is NOTHING and the embedding is a black image's.
    """
    ranks = distributed.world_size()
    padded = [*dataset, *[(NO_IMAGE, NOTHING)] * (-len(dataset) % ranks)]
    positions, labels = zip(*padded[distributed.rank() :: ranks], strict=True)
    embeddings, readable = [], []
    for batch in read_batches(dataset.index, [dataset.transform], positions, BATCH, workers, device):
        pixels = upload(batch.pixels[dataset.transform], device)
        embeddings.append(network(from_uint8(pixels).contiguous(memory_format=torch.channels_last)))
        readable.append(torch.from_numpy(batch.readable))
    return torch.cat(embeddings), torch.tensor(labels).where(torch.cat(readable), NOTHING).to(device)


def gather_in_order(values: Tensor) -> Tensor:
    """Each rank's share of the items, in the order of the items.

    Args:
        values: (M, ...), of every `world_size`-th item, from number `rank` on.

    Returns:
        (ranks * M, ...) on every rank.
    """
    parts = distributed.all_gather(values).unflatten(0, (distributed.world_size(), -1))
    return parts.transpose(0, 1).flatten(0, 1)


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode with rank 0's BatchNorm statistics, as checkpoints have them; restored afterwards."""
    training = network.training
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    own = torch.cat([buffer.flatten() for buffer in buffers]) if buffers else None
    try:
        if own is not None:
            _write(buffers, distributed.all_gather(own.unsqueeze(0))[0])
        yield network.eval()
    finally:
        if own is not None:
            _write(buffers, own)
        network.train(training)


@torch.no_grad()
def _write(tensors: list[Tensor], values: Tensor) -> None:
    for tensor, value in zip(tensors, values.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(value.view_as(tensor))


class KnnProbe:
    """Weighted kNN top-1 on frozen features of `root/train` against `root/val` (Wu et al., 2018).

    Unreadable images are left out. Every rank calls it: each embeds its share of the images, receives the features of
    all training images, and classifies its own share of the validation images.

    Args:
        root: as `data.root`, with both splits.
        px: side of the centre crop; the shorter side is resized to px * 256 / 224.
        k: neighbours that vote.
        temperature: of the votes' weights, exp(cosine / temperature).
        max_images: images of each split at most, evenly spaced.
        workers: threads that read images, 0 for none.

    Raises:
        UserError: a split is missing, or the two have different classes.
    """

    def __init__(self, root: Path | str, px: int, k: int, temperature: float, max_images: int, workers: int):
        self.sets = [EvalDataset(open_images(str(root), split), px, max_images) for split in ("train", "val")]
        self.root, self.k, self.temperature, self.workers = root, k, temperature, workers
        if self.sets[0].index.classes != self.sets[1].index.classes:
            raise UserError(
                f"{root}: train and val have different classes; the kNN probe needs the same folders in both"
            )

    def __call__(self, backbone: nn.Module, device: torch.device) -> float:
        """The share of val images, in percent, that the kNN classifies correctly.

        Args:
            backbone: (B, 3, px, px) -> (B, C); its mode and BatchNorm statistics are restored afterwards.
            device: where the backbone is.

        Raises:
            UserError: no image of train, or none of val, can be read.
        """
        with evaluation_mode(backbone) as frozen:
            # the forward itself: a compiled backbone would be compiled again for the probe's sizes
            (train, labels), (val, truth) = (embed(frozen.forward, part, device, self.workers) for part in self.sets)
        # all ranks' training features: (N, C) unit rows
        train, labels = gather_in_order(F.normalize(train, dim=1)), gather_in_order(labels)
        train, labels = train[labels != NOTHING], labels[labels != NOTHING]
        val, truth = F.normalize(val[truth != NOTHING], dim=1), truth[truth != NOTHING].cpu()
        hits, count = 0, distributed.all_reduce_sum(torch.tensor(len(truth), device=device))
        if not len(train) or not count:
            raise UserError(f"{self.root}: kNN probe: none of the images of train or of val can be read")
        if len(truth):
            classes = len(self.sets[0].index.classes)
            votes = knn_predict(train, labels, val, min(self.k, len(train)), self.temperature, classes)
            hits = int((first_argmax(votes) == truth).sum())
        return 100.0 * float(distributed.all_reduce_sum(torch.tensor(hits, device=device)) / count)
