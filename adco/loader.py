"""Batches in a fixed order: which samples make step s, and the workers that decode and crop them.

A step's batch is a function of (seed, epoch, step) and the index alone, so training may stop after any step and go on
at the next one with the same batches, whatever the number of workers.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from adco import augment, counter, views
from adco.config import View
from adco.images import ImageIndex, UnreadableImage, read_image


@dataclass(frozen=True)
class Batch:
    """pixels: V tensors (B, 3, S_v, S_v) uint8; choices: V sets of pixel-work parameters; bad: path -> reason."""

    pixels: tuple[Tensor, ...]
    choices: tuple[views.Choices, ...]
    bad: dict[str, str]

    def pin_memory(self) -> Batch:
        """Called by DataLoader so that copies to a GPU overlap with work."""
        return Batch(
            tuple(p.pin_memory() for p in self.pixels), tuple(c.map(Tensor.pin_memory) for c in self.choices), self.bad
        )

    def to_views(self, device: torch.device) -> list[Tensor]:
        """V normalised float views (B, 3, S_v, S_v) on the device, channels last in memory as the encoder is."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        made = (augment.augment(moved(p), c.map(moved)) for p, c in zip(self.pixels, self.choices, strict=True))
        return [view.contiguous(memory_format=torch.channels_last) for view in made]


@dataclass(frozen=True)
class Request:
    """The samples of one step and the epoch whose random choices they take."""

    epoch: int
    samples: np.ndarray


def requests(
    seed: int, count: int, batch: int, first_step: int, last_step: int, first_epoch: int = 0
) -> Iterator[Request]:
    """The requests of steps [first_step, last_step): whole batches of each epoch's order, the remainder left out."""
    steps_per_epoch = count // batch
    epoch, order = None, None
    for step in range(first_step, last_step):
        number, place = first_epoch + step // steps_per_epoch, step % steps_per_epoch
        if number != epoch:
            epoch, order = number, counter.permutation(seed, number, count)
        yield Request(epoch, order[place * batch : (place + 1) * batch])


class ViewDataset(Dataset):
    """Request -> Batch: decode each image once, cut every view out of it, draw the choices for the pixel work.

    An unreadable image is replaced by the next readable one of the index and named in `Batch.bad`; past `max_bad` of
    them in a row the picture is black, and the trainer stops, because `bad` is then longer than it allows.
    """

    def __init__(self, index: ImageIndex, specs: Sequence[View], seed: int, max_bad: int):
        self.index, self.specs, self.seed, self.max_bad = index, specs, seed, max_bad

    def __getitem__(self, request: Request) -> Batch:
        size = len(request.samples)
        draws = [views.draw(spec, self.seed, request.epoch, request.samples, v) for v, spec in enumerate(self.specs)]
        pixels = [np.empty((size, 3, spec.px, spec.px), dtype=np.uint8) for spec in self.specs]
        bad: dict[str, str] = {}
        for row, sample in enumerate(request.samples):
            image = self._decode(int(sample), bad)
            for spec, draw, out in zip(self.specs, draws, pixels, strict=True):
                out[row] = views.cut(image, spec.px, views.crop_box(*image.size, spec.scale, draw.crops[row]))
        return Batch(tuple(map(torch.from_numpy, pixels)), tuple(draw.choices for draw in draws), bad)

    def _decode(self, sample: int, bad: dict[str, str]):
        for step in range(min(self.max_bad + 1, len(self.index))):
            path = self.index.paths[(sample + step) % len(self.index)]
            try:
                return read_image(self.index.root / path)
            except UnreadableImage as error:
                bad[path] = error.reason
        return Image.new("RGB", (8, 8))


def batches(dataset: ViewDataset, wanted: Iterator[Request], workers: int, device: torch.device) -> DataLoader:
    """A loader that yields one Batch a request, in order."""
    return DataLoader(
        dataset,
        sampler=wanted,
        batch_size=None,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=False,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_ctrl_c_to_the_trainer,
    )


def _leave_ctrl_c_to_the_trainer(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
