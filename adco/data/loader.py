"""Batches in a fixed order: which samples make step s, and the threads that make their views.

A step's batch is a function of (seed, epoch, step) and the index alone, so training may stop after any step and go on
at the next one with the same batches, whatever the number of workers or ranks.

Backends, one meaning (`resolve_backend` chooses):
  native     decode and one fused pass a view in C, in threads of this process (adco/data/native)
  device     decode and crop on the CPU, in C where it is built; colour and blur in batches on the training device
  nvjpeg     threads read files; decode, crop, colour and blur on the GPU (adco/data/nvjpeg.py)
  reference  torchvision's transforms on Pillow images
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adco.config.schema import ViewConfig
from adco.data import native, nvjpeg
from adco.data.batch import Batch, Request, RowByRow, merged
from adco.data.images import ImageIndex, UnreadableImage, decode
from adco.data.transforms import parameters
from adco.data.transforms.reference import reference_levels
from adco.utils import philox
from adco.utils.errors import UserError
from adco.utils.threads import at_once, host_memory, in_threads

THREADS_FOR_A_GPU = 8  # from here on threads make whole views faster than a GPU trains on them


def requests(
    seed: int,
    count: int,
    batch: int,
    first_step: int,
    last_step: int,
    first_epoch: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> Iterator[Request]:
    """The requests of steps [first_step, last_step): whole batches of each epoch's order, the remainder left out.

    batch: images a step over all ranks. Rank r gets rows [r * batch / ranks, (r + 1) * batch / ranks) of each step, so
    that the ranks together see what one process sees. Raises ValueError where ranks do not divide the batch.
    """
    if batch % ranks or not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} of {ranks} cannot have an equal part of a batch of {batch}")
    steps_per_epoch, share = count // batch, batch // ranks
    epoch, order = None, None
    for step in range(first_step, last_step):
        number, place = first_epoch + step // steps_per_epoch, step % steps_per_epoch
        if number != epoch:
            epoch, order = number, philox.permutation(seed, number, count)
        first = place * batch + rank * share
        yield Request(epoch, order[first : first + share])


def resolve_backend(name: str, device: torch.device, workers: int) -> str:
    """The backend that `data.backend` means here: native, device, nvjpeg or reference. Raises UserError.

    `auto` is native on the CPU, and on a GPU with at least 8 workers, so that the GPU does nothing but train; fewer
    leave colour and blur to the GPU. Where the kernel was not built it is `device`, and says so once.
    """
    if name == "native" and not native.available():
        raise UserError(f"data.backend=native: the C kernel is not built; {_HOW_TO_BUILD}, or set data.backend=auto")
    if name == "nvjpeg" and device.type != "cuda":
        raise UserError(f"data.backend=nvjpeg: needs an NVIDIA GPU, and this is {device.type}; set data.backend=auto")
    if name != "auto":
        return name
    if not native.available():
        _say_once(f"the input pipeline's C kernel is not built and a slower one is used; {_HOW_TO_BUILD}")
        return "device"
    return "native" if device.type == "cpu" or workers >= THREADS_FOR_A_GPU else "device"


class ViewDataset:
    """Request -> Batch: decode each image once, make every view of it with the numbers that parameters.draw gives.

    An unreadable image is replaced by the next readable one of the index and named in `Batch.bad`; past `max_bad` of
    them in a row the image is black, and the trainer stops, because `bad` is then longer than it allows.
    """

    def __init__(self, index: ImageIndex, specs: Sequence[ViewConfig], seed: int, max_bad: int, backend: str = "auto"):
        self.index, self.specs, self.seed, self.max_bad, self.backend = index, specs, seed, max_bad, backend

    def __getitem__(self, request: Request) -> Batch:
        """The batch, made by Pillow at once; backend `reference`, or else `device`."""
        return at_once(self.by_pillow(request, torch.device("cpu")))

    def by_pillow(self, request: Request, device: torch.device) -> RowByRow:
        """The same in the making, in memory that a copy to the device is fast from."""
        full = self.backend == "reference"
        draws, size = self.draws(request), len(request.samples)
        pixels = [host_memory((size, 3, spec.px, spec.px), torch.uint8, device) for spec in self.specs]

        def fill(row: int, sample: int, bad: dict[str, str]) -> None:
            image = self.image(sample, bad)
            for spec, draw, out in zip(self.specs, draws, pixels, strict=True):
                if full:
                    out.numpy()[row] = reference_levels(image, spec.px, spec.scale, draw, row)
                else:
                    box = parameters.crop_box(*image.size, spec.scale, draw.crops[row])
                    out.numpy()[row] = parameters.resized_crop(image, spec.px, box)

        choices = None if full else tuple(draw.choices for draw in draws)
        return RowByRow(request.samples, fill, lambda bad: Batch(tuple(pixels), choices, bad))

    def draws(self, request: Request) -> list[parameters.ViewParams]:
        """Everything random about the views of a request."""
        return [
            parameters.sample_params(spec, self.seed, request.epoch, request.samples, v)
            for v, spec in enumerate(self.specs)
        ]

    def image(self, sample: int, bad: dict[str, str]) -> Image.Image:
        """The sample's RGB image, or the one that stands in for it; notes unreadable files in `bad`."""
        for step in range(min(self.max_bad + 1, len(self.index))):
            number = (sample + step) % len(self.index)
            try:
                return decode(self.index.read(number), self.index.paths[number])
            except UnreadableImage as error:
                bad[self.index.paths[number]] = error.reason
        return Image.new("RGB", (8, 8))


def batches(
    dataset: ViewDataset, wanted: Iterable[Request], workers: int, device: torch.device
) -> Generator[Batch, None, None]:
    """One Batch a request, in order, made ahead by `workers` threads (0: when asked for), which end with it."""
    backend = resolve_backend(dataset.backend, device, workers)
    if backend == "nvjpeg":
        begin = partial(nvjpeg.Work, dataset, device=device)
    elif backend == "reference" or not native.available():
        begin = partial(dataset.by_pillow, device=device)
    else:
        full = backend == "native"
        buffers = _Buffers(torch.float32 if full and device.type == "cpu" else torch.uint8, device)
        begin = partial(_Work, dataset, buffers=buffers, full=full)
    made = in_threads(begin, wanted, workers)
    return _uploaded(made, device) if device.type == "cuda" else made


class _Work:
    """One batch in the making."""

    def __init__(self, dataset: ViewDataset, request: Request, buffers: _Buffers, full: bool):
        self.dataset, self.samples = dataset, request.samples
        draws, specs = dataset.draws(request), dataset.specs
        self.pixels = [buffers.take((len(request.samples), spec.px, spec.px, 3)) for spec in specs]
        self.canvas = native.Canvas([spec.scale for spec in specs], draws, [p.numpy() for p in self.pixels], full)
        self.choices = None if full else tuple(draw.choices for draw in draws)

    def rows(self, first: int, last: int) -> dict[str, str]:
        """Make rows [first, last); returns the unreadable images met, path -> reason."""
        bad: dict[str, str] = {}
        for row in range(first, last):
            sample = int(self.samples[row])
            try:
                self._row(row, sample)
            except UnreadableImage:  # named there, and another one stands in for it
                self.canvas.pixels(row, np.asarray(self.dataset.image(sample, bad)))
        return bad

    def _row(self, row: int, sample: int) -> None:
        index = self.dataset.index
        content = index.read(sample)
        if isinstance(content, np.ndarray):
            self.canvas.pixels(row, content)
        elif not self.canvas.jpeg(row, content):
            self.canvas.pixels(row, np.asarray(decode(content, index.paths[sample])))

    def batch(self, bad: Sequence[dict[str, str]]) -> Batch:
        """The finished batch."""
        pixels = tuple(p.permute(0, 3, 1, 2) for p in self.pixels)
        return Batch(pixels, self.choices, merged(bad))


class _Buffers:
    """Memory for views, used again once nothing refers to it: fresh pages cost as much as a blur."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self.free: dict[tuple[int, ...], list[np.ndarray]] = {}

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialised tensor; where it is pinned for a GPU, torch keeps the memory for the next one itself."""
        if self.device.type == "cuda":
            return host_memory(shape, self.dtype, self.device)
        free = self.free.setdefault(shape, [])
        owner = free.pop() if free else torch.empty(shape, dtype=self.dtype).numpy()
        lent = owner[:]
        weakref.finalize(lent, free.append, owner).atexit = False
        return torch.from_numpy(lent)


def _uploaded(made: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Batches on a GPU: the next one is copied on a stream of its own while the one before is used."""
    stream, made, waiting = torch.cuda.Stream(device), iter(made), None
    while True:
        with torch.cuda.stream(stream):  # where nvjpeg's batches are made, too
            batch = next(made, None)
            moved = batch and batch.to(device)
            copied = stream.record_event()
        if waiting:
            yield _arrived(*waiting)
        if batch is None:
            return
        waiting = moved, copied


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    current = torch.cuda.current_stream(batch.pixels[0].device)
    current.wait_event(copied)
    for pixels in batch.pixels:
        pixels.record_stream(current)
    return batch


_HOW_TO_BUILD = "install a C compiler, then this project again (pip install -e . or uv sync --reinstall-package adco)"
_said: set[str] = set()


def _say_once(text: str) -> None:
    if text not in _said and os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)
    _said.add(text)
