"""JPEGs decoded, cropped and resized on the training device; threads only read files. On a GPU torchvision's decoder is
nvJPEG, which takes a batch a call and has hardware of its own on an A100 or H100.

What the decoder is not trusted with - other formats, a file without its end, four colours - goes through Pillow.
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

START, END = b"\xff\xd8", b"\xff\xd9"
PADDING = 64  # bytes that some programs leave behind a file's end


class Work:
    """One batch in the making: the files of a request, read by threads, become pixels on the device in `batch`."""

    def __init__(self, dataset, request: Request, device: torch.device):
        self.dataset, self.samples, self.device = dataset, request.samples, device
        self.draws = dataset.draws(request)
        self.files: list[bytes | np.ndarray] = [b""] * len(request.samples)

    def rows(self, first: int, last: int) -> dict[str, str]:
        """Read rows [first, last); returns the unreadable images met, path -> reason."""
        bad: dict[str, str] = {}
        for row in range(first, last):
            try:
                content = self.dataset.index.read(int(self.samples[row]))
            except UnreadableImage:
                content = b""
            self.files[row] = content if _ordinary(content) else self._by_pillow(row, bad)
        return bad

    def batch(self, bad: Sequence[dict[str, str]]) -> Batch:
        """Decode and resize every crop, on the device. bad: what `rows` returned."""
        more: dict[str, str] = {}
        images, specs = self._decoded(more), self.dataset.specs
        shapes = [(len(images), 3, spec.px, spec.px) for spec in specs]
        pixels = tuple(torch.empty(shape, dtype=torch.uint8, device=self.device) for shape in shapes)
        for row, image in enumerate(images):
            height, width = image.shape[-2:]
            for spec, draw, out in zip(specs, self.draws, pixels, strict=True):
                out[row] = cut(image, spec.px, parameters.crop_box(width, height, spec.scale, draw.crops[row]))
        return Batch(pixels, tuple(draw.choices for draw in self.draws), merged([*bad, more]))

    def _decoded(self, bad: dict[str, str]) -> list[Tensor]:
        """(3, H, W) uint8 images on the device."""
        encoded = [row for row, file in enumerate(self.files) if isinstance(file, bytes)]
        for row, image in zip(encoded, self._decode(encoded, bad), strict=True):
            self.files[row] = image
        return [torch.as_tensor(file).to(self.device, non_blocking=True) for file in self.files]

    def _decode(self, rows: Sequence[int], bad: dict[str, str]) -> list[Tensor | np.ndarray]:
        files = [torch.frombuffer(bytearray(self.files[row]), dtype=torch.uint8) for row in rows]
        try:
            return decoded(files, self.device) if files else []
        except RuntimeError:  # one of them at least, and it is not said which
            if len(rows) == 1:
                return [self._by_pillow(rows[0], bad)]
            return [image for row in rows for image in self._decode([row], bad)]

    def _by_pillow(self, row: int, bad: dict[str, str]) -> np.ndarray:
        return np.asarray(self.dataset.image(int(self.samples[row]), bad)).transpose(2, 0, 1).copy()


def decoded(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """JPEG files' bytes, (N,) uint8 on the CPU, -> (3, H, W) uint8 images on the device. Raises RuntimeError.

    nvJPEG writes on a stream of its own and does not wait for the current one. So its images come from the memory of a
    third stream, which nothing else is allocated from, and that memory is used again only when what the current stream
    does with the images has ended: without this, images would be overwritten while their crops are still queued.
    """
    if device.type != "cuda":
        return decode_jpeg(files, ImageReadMode.RGB, device)
    stream, current = _decoding_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(stream):
        images = decode_jpeg(files, ImageReadMode.RGB, device)
    current.wait_stream(stream)
    for image in images:
        image.record_stream(current)  # when it is freed, its memory waits for an event of the current stream
    return images


@functools.cache
def _decoding_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def cut(image: Tensor, px: int, box: tuple[int, int, int, int]) -> Tensor:
    """Crop `box` (left, top, width, height) out of (3, H, W) uint8 and resize it, bilinear and antialiased as
    torchvision: (3, px, px), whole levels."""
    left, top, width, height = box
    crop = image[:, top : top + height, left : left + width].unsqueeze(0).float()
    return F.interpolate(crop, (px, px), mode="bilinear", antialias=True, align_corners=False)[0].round_()


def _ordinary(content: bytes | np.ndarray) -> bool:
    return isinstance(content, bytes) and content[:2] == START and END in content[-PADDING:]
