"""JPEGs decoded, cropped and resized on the training device; threads only read files.

On a GPU torchvision's decoder is nvJPEG, which takes a batch a call and has hardware of its own on an A100 or H100.
Files that it cannot be trusted with (other formats, a missing end of file, four colours) are decoded by Pillow.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg

from adco.data.batch import Batch, Request, merged
from adco.data.images import UnreadableImage
from adco.data.transforms import parameters
from adco.data.view_dataset import ViewDataset

START, END = b"\xff\xd8", b"\xff\xd9"
PADDING = 64  # bytes that some programs write after the end marker


class DecodingTask:
    """One batch in the making: threads read the files of a request, and `batch` makes pixels of them on the device.

    Args:
        dataset: the images, the views' configurations and their random numbers.
        request: the batch's samples.
        device: where the pixels are made.
    """

    def __init__(self, dataset: ViewDataset, request: Request, device: torch.device):
        self.dataset, self.samples, self.device = dataset, request.samples, device
        self.draws = dataset.draws(request)
        self.files: list[bytes | np.ndarray] = [b""] * len(request.samples)  # encoded, or (3, H, W) uint8

    def rows(self, first: int, last: int) -> dict[str, str]:
        """Read rows [first, last); returns their unreadable images, path -> reason."""
        bad: dict[str, str] = {}
        for row in range(first, last):
            try:
                content = self.dataset.index.read(int(self.samples[row]))
            except UnreadableImage:
                content = b""
            self.files[row] = content if _ordinary(content) else self._by_pillow(row, bad)
        return bad

    def batch(self, parts: Sequence[dict[str, str]]) -> Batch:
        """Decode the images and resize every crop, on the device.

        Args:
            parts: what `rows` returned for each part of the batch.
        """
        bad: dict[str, str] = {}
        images, specs = self._decoded(bad), self.dataset.specs
        shapes = [(len(images), 3, spec.px, spec.px) for spec in specs]
        pixels = tuple(torch.empty(shape, dtype=torch.uint8, device=self.device) for shape in shapes)
        for row, image in enumerate(images):
            height, width = image.shape[-2:]
            for spec, draw, out in zip(specs, self.draws, pixels, strict=True):
                box = parameters.crop_box(width, height, spec.scale, draw.crops[row])
                out[row] = resized_crop(image, spec.px, box)
        return Batch(pixels, tuple(draw.choices for draw in self.draws), merged([*parts, bad]))

    def _decoded(self, bad: dict[str, str]) -> list[Tensor]:
        """(3, H, W) uint8 images on the device."""
        encoded = [row for row, file in enumerate(self.files) if isinstance(file, bytes)]
        images = dict(zip(encoded, self._decode(encoded, bad), strict=True))
        images_or_pixels = (images.get(row, file) for row, file in enumerate(self.files))
        return [torch.as_tensor(image).to(self.device, non_blocking=True) for image in images_or_pixels]

    def _decode(self, rows: Sequence[int], bad: dict[str, str]) -> Sequence[Tensor | np.ndarray]:
        files = [torch.frombuffer(bytearray(self.files[row]), dtype=torch.uint8) for row in rows]
        try:
            return decoded(files, self.device) if files else []
        except RuntimeError:  # at least one of them is broken, and the decoder does not say which
            if len(rows) == 1:
                return [self._by_pillow(rows[0], bad)]
            return [image for row in rows for image in self._decode([row], bad)]

    def _by_pillow(self, row: int, bad: dict[str, str]) -> np.ndarray:
        return np.asarray(self.dataset.image(int(self.samples[row]), bad)).transpose(2, 0, 1).copy()


def decoded(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode a batch of JPEG files on the device.

    nvJPEG writes on a stream of its own and does not wait for the current one. So its images take their memory from a
    third stream, from which nothing else is allocated. That memory is used again only when the current stream's work on
    the images has ended: without this, images would be overwritten while their crops are still queued.

    Args:
        files: the files' bytes, (N,) uint8 on the CPU.
        device: where to decode; on the CPU libjpeg does it.

    Returns:
        (3, H, W) uint8 RGB images on the device.

    Raises:
        RuntimeError: one of the files cannot be decoded.
    """
    if device.type != "cuda":
        return _decode_jpeg(files, device)
    stream, current = _decoding_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        images = _decode_jpeg(files, device)
    current.wait_stream(stream)
    for image in images:
        image.record_stream(current)  # its memory is reused only after the current stream's work so far
    return images


def _decode_jpeg(files: list[Tensor], device: torch.device) -> list[Tensor]:
    images = decode_jpeg(files, ImageReadMode.RGB, device)
    return images if isinstance(images, list) else [images]


@functools.cache
def _decoding_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def resized_crop(image: Tensor, px: int, box: tuple[int, int, int, int]) -> Tensor:
    """Crop an image and resize it, bilinear and antialiased as torchvision, on the image's device.

    Args:
        image: (3, H, W) uint8.
        px: side of the result in pixels.
        box: (left, top, width, height) in pixels.

    Returns:
        (3, px, px) float32, whole levels in [0, 255].
    """
    left, top, width, height = box
    crop = image[:, top : top + height, left : left + width].unsqueeze(0).float()
    return F.interpolate(crop, (px, px), mode="bilinear", antialias=True, align_corners=False)[0].round_()


def _ordinary(content: bytes | np.ndarray) -> bool:
    """Whether it is a JPEG file with its start and its end."""
    return isinstance(content, bytes) and content[:2] == START and END in content[-PADDING:]
