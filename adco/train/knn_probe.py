"""EvalDataset as a frozen network is judged on them: centre crops in a fixed order, embedded by all ranks together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as pixels

from adco.data.batch import Request, RowByRow
from adco.data.images import ImageIndex, UnreadableImage
from adco.data.sources import open_images
from adco.data.transforms.functional import from_uint8
from adco.evaluation.knn import first_argmax, knn_predict
from adco.utils import distributed
from adco.utils.device import upload
from adco.utils.errors import UserError
from adco.utils.threads import host_memory, in_threads

NOTHING = -1  # the label where there is no image
BATCH = 256


def center_crop(image: Image.Image, px: int, resize_px: int) -> Tensor:
    """RGB image -> (3, px, px) uint8: shorter side to resize_px (bilinear, antialiased), then the central square."""
    return pixels.pil_to_tensor(pixels.center_crop(pixels.resize(image, resize_px, antialias=True), [px, px]))


class EvalDataset:
    """At most `most` of an index, evenly spaced: i -> (3, px, px) uint8 and its label.

    Black and NOTHING where the image cannot be read, and beyond the last one. The shorter side is px * 256 / 224.
    """

    def __init__(self, index: ImageIndex, px: int, most: int):
        self.index, self.px, self.chosen = index, px, range(0, len(index), max(1, -(-len(index) // most)))

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i < len(self):
            sample = self.chosen[i]
            try:
                crop = center_crop(self.index.image(sample), self.px, round(self.px * 256 / 224))
                return crop, self.index.labels[sample]
            except UnreadableImage:
                pass
        return torch.zeros(3, self.px, self.px, dtype=torch.uint8), NOTHING


def _crops(dataset: EvalDataset, device: torch.device, request: Request) -> RowByRow:
    """A batch of them in the making: (B, 3, px, px) uint8 and labels (B,)."""
    shape = len(request.samples), 3, dataset.px, dataset.px
    images, labels = host_memory(shape, torch.uint8, device), torch.empty(shape[0], dtype=torch.int64)

    def fill(row: int, i: int, bad: dict[str, str]) -> None:
        images.numpy()[row], labels.numpy()[row] = dataset[i]

    return RowByRow(request.samples, fill, lambda bad: (images, labels))


@torch.no_grad()
def embed(
    network: Callable[[Tensor], Tensor], dataset: EvalDataset, device: torch.device, workers: int
) -> tuple[Tensor, Tensor]:
    """This rank's share of the dataset, every ranks-th one, through `network`: rows (M, C) on the device, labels (M,).

    M is the same on every rank; where there is no image the label is NOTHING and the row is a black image's.
    """
    step = distributed.world_size()
    share = np.arange(distributed.rank(), -(-len(dataset) // step) * step, step)
    wanted = (Request(0, share[first : first + BATCH]) for first in range(0, len(share), BATCH))
    rows, labels = [], []
    for images, found in in_threads(partial(_crops, dataset, device), wanted, workers):
        images = from_uint8(upload(images, device)).contiguous(memory_format=torch.channels_last)
        rows.append(network(images))
        labels.append(found)
    return torch.cat(rows), torch.cat(labels).to(device)


def gather_in_order(rows: Tensor) -> Tensor:
    """What each rank has of every ranks-th item, (M, ...) -> (ranks * M, ...) on each, in the order of the items."""
    parts = distributed.all_gather(rows).unflatten(0, (distributed.world_size(), -1))
    return parts.transpose(0, 1).flatten(0, 1)


@contextmanager
def judged(network: nn.Module) -> Iterator[nn.Module]:
    """The network in eval mode with rank 0's BatchNorm statistics, as checkpoints have them; then all is put back."""
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
    """Weighted kNN top-1 on frozen features of `root/train` against `root/val`, at most max_images of each.

    root: as `data.root`, with both splits. Images: shorter side to px * 256 / 224, centre crop of px; unreadable ones
    are left out. Every rank calls it: each embeds its share of the dataset, meets all training features, and votes for
    its own share of the validation.
    """

    def __init__(self, root: Path | str, px: int, k: int, temperature: float, max_images: int, workers: int):
        self.sets = [EvalDataset(open_images(str(root), split), px, max_images) for split in ("train", "val")]
        self.root, self.k, self.temperature, self.workers = root, k, temperature, workers
        if self.sets[0].index.classes != self.sets[1].index.classes:
            raise UserError(
                f"{root}: train and val have different classes; the kNN probe needs the same folders in both"
            )

    def __call__(self, backbone: nn.Module, device: torch.device) -> float:
        """Percent of val images whose class the neighbours vote for. The backbone's mode is put back afterwards."""
        with judged(backbone) as frozen:
            # the forward itself: a compiled backbone would be compiled again for the probe's sizes
            (train, labels), (val, truth) = (embed(frozen.forward, part, device, self.workers) for part in self.sets)
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
