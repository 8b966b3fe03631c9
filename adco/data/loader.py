"""The batches of a pretraining: which samples belong to a step, and the threads that make their views.

A step's batch is a function of (seed, epoch, step) and the index alone. So training may stop after any step and resume
at the next one with the same batches, whatever the number of workers or ranks.

Backends, which make the same views (`resolve_backend` chooses):
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
from torch import Tensor

from adco.data import native, nvjpeg
from adco.data.batch import Batch, Request, merged
from adco.data.images import UnreadableImage, decode
from adco.data.view_dataset import ViewDataset
from adco.utils import philox
from adco.utils.errors import UserError
from adco.utils.threads import host_memory, in_threads

THREADS_FOR_A_GPU = 8  # with this many, threads make whole views faster than a GPU trains on them


def shuffled_steps(
    seed: int, count: int, steps_per_epoch: int, first_step: int, last_step: int, first_epoch: int = 0
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Each step's place in the shuffled epochs, for samplers: the same wherever the training starts.

    Args:
        seed: with the epoch's number, what the order depends on.
        count: samples of the dataset.
        steps_per_epoch: steps after which the next epoch starts, in its own order.
        first_step, last_step: the steps [first_step, last_step) are yielded.
        first_epoch: number of the epoch that step 0 belongs to.

    Yields:
        (epoch, step within the epoch, the epoch's order of all samples, (count,) int64).
    """
    epoch, order = None, np.empty(0, dtype=np.int64)
    for step in range(first_step, last_step):
        number, place = first_epoch + step // steps_per_epoch, step % steps_per_epoch
        if number != epoch:
            epoch, order = number, philox.permutation(seed, number, count)
        yield number, place, order


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

    Rank r gets rows [r * batch / ranks, (r + 1) * batch / ranks) of each step, so that the ranks together see what one
    process sees.

    Args:
        seed: seed of the order.
        count: images of the dataset.
        batch: images a step over all ranks.
        first_step, last_step: which steps, counted from the start of epoch `first_epoch`.
        first_epoch: number of the first epoch.
        rank, ranks: this process and how many there are.

    Raises:
        ValueError: the ranks do not divide the batch.
    """
    if batch % ranks or not 0 <= rank < ranks:
        raise ValueError(f"rank {rank} of {ranks} cannot have an equal part of a batch of {batch}")
    share = batch // ranks
    for epoch, place, order in shuffled_steps(seed, count, count // batch, first_step, last_step, first_epoch):
        first = place * batch + rank * share
        yield Request(epoch, order[first : first + share])


def resolve_backend(name: str, device: torch.device, workers: int) -> str:
    """The backend that `data.backend` means here: native, device, nvjpeg or reference.

    `auto` is native on the CPU, and on a GPU with at least 8 workers, so that the GPU does nothing but train. With
    fewer workers the GPU does colour and blur. Where the C kernel was not built, `auto` is `device`, with one note on
    stderr.

    Args:
        name: `data.backend`, one of the four or `auto`.
        device: the device that trains.
        workers: threads that make views.

    Raises:
        UserError: the backend that was asked for cannot run here.
    """
    if name == "native" and not native.available():
        raise UserError(f"data.backend=native: the C kernel is not built; {_HOW_TO_BUILD}, or set data.backend=auto")
    if name == "nvjpeg" and device.type != "cuda":
        raise UserError(f"data.backend=nvjpeg: needs an NVIDIA GPU, and this is {device.type}; set data.backend=auto")
    if name != "auto":
        return name
    if not native.available():
        _note_once(f"the input pipeline's C kernel is not built and a slower one is used; {_HOW_TO_BUILD}")
        return "device"
    return "native" if device.type == "cpu" or workers >= THREADS_FOR_A_GPU else "device"


def batches(
    dataset: ViewDataset, wanted: Iterable[Request], workers: int, device: torch.device
) -> Generator[Batch, None, None]:
    """One Batch a request, in the order of the requests, made ahead by threads that end with the generator.

    Args:
        dataset: makes the batches.
        wanted: the requests, e.g. of `requests`.
        workers: threads; with 0 a batch is made when it is asked for.
        device: the device that trains.

    Yields:
        Batches with pixels (B, 3, S_v, S_v), on the device where that is a GPU. On the CPU their memory is used again
        once nothing refers to it.

    Raises:
        UserError: the dataset's backend cannot run here.
    """
    backend = resolve_backend(dataset.backend, device, workers)
    if backend == "nvjpeg":
        begin = partial(nvjpeg.DecodingTask, dataset, device=device)
    elif backend == "reference" or not native.available():
        begin = partial(dataset.by_pillow, device=device)
    else:
        full = backend == "native"
        buffers = _Buffers(torch.float32 if full and device.type == "cpu" else torch.uint8, device)
        begin = partial(_NativeBatch, dataset, buffers=buffers, full=full)
    made = in_threads(begin, wanted, workers)
    return _uploaded(made, device) if device.type == "cuda" else made


class _NativeBatch:
    """One batch in the making, by the C kernel."""

    def __init__(self, dataset: ViewDataset, request: Request, buffers: _Buffers, full: bool):
        self.dataset, self.samples = dataset, request.samples
        draws, specs = dataset.draws(request), dataset.specs
        self.pixels = [buffers.take((len(request.samples), spec.px, spec.px, 3)) for spec in specs]
        self.canvas = native.Canvas([spec.scale for spec in specs], draws, [p.numpy() for p in self.pixels], full)
        self.choices = None if full else tuple(draw.choices for draw in draws)

    def rows(self, first: int, last: int) -> dict[str, str]:
        """Make rows [first, last); returns their unreadable images, path -> reason."""
        bad: dict[str, str] = {}
        for row in range(first, last):
            sample = int(self.samples[row])
            try:
                self._row(row, sample)
            except UnreadableImage:  # `image` names it in `bad`, and returns the next readable one
                self.canvas.pixels(row, np.asarray(self.dataset.image(sample, bad)))
        return bad

    def _row(self, row: int, sample: int) -> None:
        index = self.dataset.index
        content = index.read(sample)
        if isinstance(content, np.ndarray):
            self.canvas.pixels(row, content)
        elif not self.canvas.jpeg(row, content):
            self.canvas.pixels(row, np.asarray(decode(content, index.paths[sample])))

    def batch(self, parts: Sequence[dict[str, str]]) -> Batch:
        """The finished batch."""
        pixels = tuple(p.permute(0, 3, 1, 2) for p in self.pixels)
        return Batch(pixels, self.choices, merged(parts))


class _Buffers:
    """Memory for views, used again once nothing refers to it: new pages cost as much time as a blur."""

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


def _uploaded(made: Iterator[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """Batches on a GPU: the next one is copied on a stream of its own while the one before is used."""
    stream = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    while True:
        with torch.cuda.stream(stream):  # where nvjpeg's batches are made, too
            batch, copied = next(made, None), torch.cuda.Event()
            moved = None if batch is None else batch.to(device)
            copied.record(stream)
        if waiting:
            yield _arrived(*waiting)
        if moved is None:
            return
        waiting = moved, copied


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    current = torch.cuda.current_stream(batch.pixels[0].device)
    current.wait_event(copied)
    for pixels in batch.pixels:
        pixels.record_stream(current)
    return batch


_HOW_TO_BUILD = "install a C compiler, then this project again (pip install -e . or uv sync --reinstall-package adco)"
_noted: set[str] = set()


def _note_once(text: str) -> None:
    if text not in _noted and os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)
    _noted.add(text)
