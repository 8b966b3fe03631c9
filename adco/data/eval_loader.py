"""Images without augmentation, in a given order, decoded in batches by threads: what a network is evaluated on."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adco.data.batch import Request, RowByRow
from adco.data.images import UnreadableImage
from adco.data.transforms.evaluation import EvalTransform
from adco.utils.threads import host_memory, in_threads

T = TypeVar("T", bound=EvalTransform)
NO_IMAGE = -1  # a position without an image


class ImageSource(Protocol):
    """Images in a fixed order, e.g. an ImageIndex."""

    @property
    def paths(self) -> Sequence[str]:
        """The images' names in messages."""
        ...

    def image(self, i: int) -> Image.Image:
        """Image i, RGB. Raises UnreadableImage."""
        ...


@dataclass(frozen=True)
class EvalBatch(Generic[T]):
    """B images by each transform.

    Attributes:
        positions: (B,) positions in the source, NO_IMAGE for none.
        readable: (B,) bool, whether there is an image at the position that can be read.
        pixels: (B, 3, S, S) uint8 by transform (`five`: (B, 5, 3, S, S)); black where not readable.
        bad: path -> reason of the images that cannot be read.
    """

    positions: np.ndarray
    readable: np.ndarray
    pixels: dict[T, Tensor]
    bad: dict[str, str]

    @cached_property
    def images(self) -> dict[T, Tensor]:
        """The R readable ones of `pixels`: (R, 3, S, S) uint8 by transform."""
        if self.readable.all():
            return self.pixels
        return {transform: pixels[torch.from_numpy(self.readable)] for transform, pixels in self.pixels.items()}


def read_batches(
    source: ImageSource,
    transforms: Iterable[T],
    positions: Sequence[int] | np.ndarray,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> Generator[EvalBatch[T], None, None]:
    """The images at `positions`, in this order, each decoded once for all transforms.

    Args:
        source: where the images are read.
        transforms: how they become the network's input.
        positions: which images; NO_IMAGE gives a black one.
        batch_size: images a batch; the last one may be smaller.
        workers: threads that read ahead, 0 for none.
        device: where the images will be copied; the memory is pinned for a GPU.

    Yields:
        Batches on the CPU.
    """
    order = np.asarray(positions)
    wanted = (Request(0, order[first : first + batch_size]) for first in range(0, len(order), batch_size))
    return in_threads(partial(_reading, source, tuple(transforms), device), wanted, workers)


def _reading(
    source: ImageSource, transforms: Sequence[T], device: torch.device, request: Request
) -> RowByRow[EvalBatch[T]]:
    """A batch in the making."""
    size = len(request.samples)
    pixels = {transform: host_memory((size, *transform.shape), torch.uint8, device) for transform in transforms}
    readable = np.ones(size, dtype=bool)

    def fill(row: int, i: int, bad: dict[str, str]) -> None:
        try:
            image = source.image(i) if i != NO_IMAGE else None
        except UnreadableImage as error:
            image, bad[source.paths[i]] = None, error.reason
        readable[row] = image is not None
        for transform, out in pixels.items():
            out.numpy()[row] = 0 if image is None else transform(image)

    return RowByRow(request.samples, fill, lambda bad: EvalBatch(request.samples, readable, pixels, bad))
