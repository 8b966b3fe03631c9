"""Images of a folder in a fixed order, decoded in batches by threads: what a network is judged on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adco.data.batch import Request, RowByRow
from adco.data.images import UnreadableImage, read_image
from adco.utils.threads import host_memory, in_threads
from transfer.features.transforms import Transform


@dataclass(frozen=True)
class ImageList:
    """Files below a folder, in a fixed order. name: a word for file names and progress, e.g. `val`."""

    root: Path
    paths: tuple[str, ...]
    name: str

    def fingerprint(self) -> str:
        """sha256 of paths, sizes and times of change: an image that was exchanged makes another data set.

        A file that cannot even be looked at is left to the reading, which counts and names it.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                stat = (self.root / path).stat()
                size, changed = stat.st_size, stat.st_mtime_ns
            except OSError:
                size, changed = -1, 0
            digest.update(os.fsencode(f"{path}\0{size}\0{changed}\n"))
        return digest.hexdigest()


@dataclass(frozen=True)
class Decoded:
    """A batch. positions: (B,) in `ImageList.paths`; readable: (B,) bool; images: the R readable ones by each
    transform, (R, 3, S, S) uint8 (`five`: (R, 5, 3, S, S)); bad: the reasons of the others by path."""

    positions: np.ndarray
    readable: np.ndarray
    images: dict[Transform, Tensor]
    bad: dict[str, str]


def read_batches(
    dataset: ImageList,
    transforms: Iterable[Transform],
    positions: Sequence[int],
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Generator[Decoded, None, None]:
    """The images at `positions`, in this order, each decoded once for all transforms.

    workers: threads that read ahead, 0 for none; device: where the images will go, from pinned memory to a GPU
    """
    order = np.asarray(positions)
    wanted = (Request(0, order[first : first + batch_size]) for first in range(0, len(order), batch_size))
    return in_threads(partial(_decoding, dataset, tuple(transforms), device), wanted, workers)


def _decoding(dataset: ImageList, transforms: Sequence[Transform], device: torch.device, request: Request) -> RowByRow:
    """A batch in the making."""
    size = len(request.samples)
    stacks = {transform: host_memory((size, *transform.shape), torch.uint8, device) for transform in transforms}
    readable = np.ones(size, dtype=bool)

    def fill(row: int, i: int, bad: dict[str, str]) -> None:
        path = dataset.paths[i]
        try:
            image = read_image(dataset.root / path)
        except UnreadableImage as error:
            bad[path], readable[row] = error.reason, False
            return
        for transform, stack in stacks.items():
            stack.numpy()[row] = transform(image)

    def finish(bad: dict[str, str]) -> Decoded:
        images = stacks if readable.all() else {t: stack[torch.from_numpy(readable)] for t, stack in stacks.items()}
        return Decoded(request.samples, readable, images, bad)

    return RowByRow(request.samples, fill, finish)
