"""Knowing whether it works: progress bar, JSONL, TensorBoard, and a kNN probe on frozen features."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms import functional as pixels

from adco.augment import from_uint8
from adco.errors import UserError
from adco.files import write_text
from adco.images import ImageIndex, UnreadableImage, index_folder, read_image
from adco.knn import knn_accuracy


class Log:
    """Scalars of a run: a row of `metrics.jsonl` and TensorBoard's points. On resume, rows after `step` are dropped."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Append one row; each key becomes a TensorBoard curve."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard."""
        self.board.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`; a last line cut off by a crash is left out, an absent file has none."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


class KnnProbe:
    """Weighted kNN top-1 on frozen features of `root/train` against `root/val`, at most max_images of each.

    Images: shorter side to px * 256 / 224, centre crop of px. Unreadable ones are left out.
    """

    def __init__(self, root: Path, px: int, k: int, temperature: float, max_images: int, workers: int):
        self.sets = [_Pictures(index_folder(Path(root) / split), px, max_images) for split in ("train", "val")]
        self.px, self.k, self.temperature, self.workers = px, k, temperature, workers
        if self.sets[0].index.classes != self.sets[1].index.classes:
            raise UserError(
                f"{root}: train and val have different classes; the kNN probe needs the same folders in both"
            )

    def __call__(self, backbone: nn.Module, device: torch.device) -> float:
        """Percent of val images whose class the neighbours vote for. The backbone's mode is put back afterwards."""
        training = backbone.training
        backbone.eval()
        (train, labels), (val, truth) = (embed(backbone, pictures, device, self.workers) for pictures in self.sets)
        backbone.train(training)
        classes = len(self.sets[0].index.classes)
        return knn_accuracy(train, labels, val, truth, min(self.k, len(train)), self.temperature, classes)


class _Pictures(Dataset):
    """Image i -> (uint8 centre crop, label), or (None, label) where it cannot be read; evenly spaced if too many."""

    def __init__(self, index: ImageIndex, px: int, most: int):
        stride = max(1, -(-len(index) // most))
        self.index, self.px, self.chosen = index, px, range(0, len(index), stride)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> tuple[Tensor | None, int]:
        sample = self.chosen[i]
        try:
            image = read_image(self.index.root / self.index.paths[sample])
        except UnreadableImage:
            return None, self.index.labels[sample]
        image = pixels.center_crop(pixels.resize(image, round(self.px * 256 / 224), antialias=True), [self.px, self.px])
        return pixels.pil_to_tensor(image), self.index.labels[sample]


@torch.inference_mode()
def embed(backbone: nn.Module, pictures: Dataset, device: torch.device, workers: int) -> tuple[Tensor, Tensor]:
    """Unit features (N, C) and labels (N,) of the readable pictures."""
    rows, labels = [], []
    for images, found in DataLoader(pictures, batch_size=256, num_workers=workers, collate_fn=_readable):
        images = from_uint8(images.to(device)).contiguous(memory_format=torch.channels_last)
        rows.append(F.normalize(backbone(images), dim=1))
        labels.append(found)
    return torch.cat(rows), torch.cat(labels)


def _readable(items: list[tuple[Tensor | None, int]]) -> tuple[Tensor, Tensor]:
    good = [(image, label) for image, label in items if image is not None]
    if not good:
        raise UserError("kNN probe: a whole batch of pictures cannot be read; see bad_images.txt")
    return torch.stack([image for image, _ in good]), torch.tensor([label for _, label in good])


class Rate:
    """Images per second since the last time it was asked."""

    def __init__(self) -> None:
        self.last, self.count = time.perf_counter(), 0

    def __call__(self, images: int) -> float:
        now = time.perf_counter()
        rate = (images - self.count) / (now - self.last)
        self.last, self.count = now, images
        return rate
