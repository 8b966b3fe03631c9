"""Section 3: batches that are made while the GPU is busy equal those of a synchronous run, bit for bit.

They would differ if memory were reused too early, a copy read before it has arrived, or two threads wrote one row.
Images have many sizes and kinds, so that memory is reused and decoders take all of their paths.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adco.config.schema import ViewConfig
from adco.data import native, nvjpeg
from adco.data.batch import Batch, Request
from adco.data.images import ImageIndex, index_folder
from adco.data.loader import ViewDataset, batches, requests, resolve_backend
from adco.data.transforms.functional import STD
from adco.utils.device import resolve_workers, set_arithmetic
from adco.utils.errors import UserError
from adco.utils.threads import at_once
from benchmarks.on_gpu.sections import Context
from benchmarks.on_gpu.sections.checks import Check, Finding, perform
from benchmarks.on_gpu.sections.shared import photographs
from benchmarks.speed.photographs import jpeg, photograph

BACKENDS = ("native", "device", "nvjpeg")
LEVELS = 2.0  # mean absolute difference between nvJPEG's views and the C kernel's, of 255: chroma is interpolated
SIZES = ((500, 375), (333, 251), (97, 301), (160, 120), (41, 43))  # width and height in pixels


@dataclass(frozen=True)
class Load:
    """How much work a check does.

    Attributes:
        batches: How many batches.
        batch: How many images each has.
        views: The views of an image.
        square: The side of the matrix that keeps the GPU busy.
        products: How often it is multiplied with itself between two batches.
        seconds: The time of both runs of one backend.
    """

    batches: int
    batch: int
    views: tuple[ViewConfig, ...]
    square: int
    products: int
    seconds: float


def run(context: Context) -> None:
    """Compare each backend with itself, then nvJPEG with the C kernel. Raises Failure when one differs."""
    set_arithmetic(context.device)
    index = index_folder(many_kinds(context))
    views = (
        (ViewConfig(px=24, solarize_p=0.2), ViewConfig(px=16))
        if context.small
        else (ViewConfig(px=96, solarize_p=0.2), ViewConfig(px=64))
    )
    size = (6, 8, views, 128, 1) if context.small else (40, 256, views, 8192, 20)
    load = Load(*size, seconds=context.seconds / (len(BACKENDS) + 1))
    perform(context, checks(index, load, context.device))


def checks(index: ImageIndex, load: Load, device: torch.device) -> Iterator[Check]:
    """Names and checks, the most important first."""
    for backend in ("nvjpeg", "native", "device"):
        yield f"{backend}_under_load", partial(same_under_load, index, load, backend, device)
    yield "nvjpeg_equals_native", partial(nvjpeg_equals_native, index, load, device)


def many_kinds(context: Context) -> Path:
    """A folder with photographs of several sizes, `copies` links to each, and the `odd_files`.

    The latter are so few that most batches have no image that nvJPEG refuses, which would make it decode image by
    image.
    """
    folder, (count, large, copies) = context.work / "many_kinds", (16, 4, 2) if context.small else (80, 16, 24)
    folder.mkdir(parents=True, exist_ok=True)
    ordinary = [folder / f"{number:03d}.jpg" for number in range(count)]
    for number, path in enumerate(ordinary):
        if not path.is_file():
            path.write_bytes(jpeg(photograph(number, *SIZES[number % len(SIZES)])))
    ordinary += sorted(photographs(context, large).rglob("*.jpg"))[:large]
    for number, path in enumerate(copies * ordinary):
        link = folder / f"link{number:04d}.jpg"
        if not link.exists():
            link.symlink_to(path.resolve())
    for name, content in odd_files().items():
        (folder / name).write_bytes(content)
    return folder


def odd_files() -> dict[str, bytes]:
    """Content by name: files that decoders of ordinary JPEGs may fail on, and two that nothing can read."""
    pixels = photograph(1000, 211, 157)
    whole, image = jpeg(pixels), Image.fromarray(pixels)
    return {
        "cmyk.jpg": _saved(image.convert("CMYK"), "JPEG"),
        "grey.jpg": _saved(image.convert("L"), "JPEG"),
        "progressive.jpg": jpeg(pixels, progressive=True),
        "full_chroma.jpg": jpeg(pixels, subsampling=0),
        "one_pixel.jpg": jpeg(pixels[:1, :1]),
        "wide.jpg": jpeg(pixels[:3]),
        "padded.jpg": whole + bytes(7),
        "image.png": _saved(image, "PNG"),
        "palette.png": _saved(image.quantize(16), "PNG"),
        "transparent.png": _saved(image.convert("RGBA"), "PNG"),
        "truncated.jpg": whole[: len(whole) // 2],
        "empty.jpg": b"",
    }


def _saved(image: Image.Image, kind: str) -> bytes:
    with io.BytesIO() as file:
        image.save(file, kind)
        return file.getvalue()


def same_under_load(index: ImageIndex, load: Load, backend: str, device: torch.device) -> Finding:
    """Whether batches under load equal those of a synchronous run. The run under load may take half of the time. The
    synchronous one makes some of the same batches, spread evenly, until the time is up."""
    begin = time.monotonic()
    workers = resolve_workers("auto", device)
    try:
        resolve_backend(backend, device, workers)
    except UserError as error:
        return Finding(None, {"reason": str(error)})
    dataset = ViewDataset(index, load.views, 0, len(index), backend)
    wanted = list(requests(0, len(index), min(load.batch, len(index)), 0, load.batches))
    busy = loaded(dataset, wanted, workers, load, device, begin + load.seconds / 2)
    order = spread(len(busy))
    calm = synchronous(dataset, [wanted[number] for number in order], device, begin + load.seconds)
    different = [number for number, sums in zip(order, calm, strict=False) if not _equal(sums, busy[number])]
    facts = {"batches": len(busy), "compared": len(calm), "different": different, "workers": workers}
    return Finding(bool(calm) and not different, facts)


def loaded(
    dataset: ViewDataset, wanted: Sequence[Request], workers: int, load: Load, device: torch.device, until: float
) -> list[list[Tensor]]:
    """Checksums (B,) of each batch's views, which threads make while matrix products keep the GPU busy. The work on a
    batch is queued behind the products, and nothing waits before the end."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    square, found = torch.randn(load.square, load.square, device=device, dtype=dtype), []
    for batch in batches(dataset, wanted, workers, device):
        for _ in range(load.products):
            square @ square
        found.append(checksums(batch.to_views(device)))
        if time.monotonic() > until:
            break
    return [[sums.cpu() for sums in views] for views in found]


def synchronous(
    dataset: ViewDataset, wanted: Sequence[Request], device: torch.device, until: float
) -> list[list[Tensor]]:
    """The same checksums, where a batch starts when all work on the one before has ended."""
    found = []
    for request in wanted:
        (batch,) = batches(dataset, [request], 0, device)
        _wait(device)
        found.append([sums.cpu() for sums in checksums(batch.to_views(device))])
        _wait(device)
        if time.monotonic() > until:
            break
    return found


def checksums(views: Sequence[Tensor]) -> list[Tensor]:
    """Exact checksums, which do not depend on the order of the sum.

    Args:
        views: (B, 3, S, S) float32 each.

    Returns:
        For each view (B,) int64: the sum of the values' bits times their positions.
    """
    found = []
    for view in views:
        bits = view.contiguous().view(torch.int32).flatten(1).long()
        found.append((bits * torch.arange(1, bits.shape[1] + 1, device=bits.device)).sum(dim=1))
    return found


def spread(count: int) -> list[int]:
    """The numbers below `count`, bit-reversed, so that the first ones of any length are spread evenly."""
    width = max(1, (count - 1).bit_length())
    return [n for n in (int(f"{i:0{width}b}"[::-1], 2) for i in range(2**width)) if n < count]


def nvjpeg_equals_native(index: ImageIndex, load: Load, device: torch.device) -> Finding:
    """Whether nvJPEG, or torchvision's decoder on a CPU, and the C kernel make the same views of all files, to within
    LEVELS, and report the same unreadable ones."""
    if not native.available():
        return Finding(None, {"reason": "the C kernel is not built"})
    request = Request(0, np.array([i for i, path in enumerate(index.paths) if not path.startswith("link")]))
    kernel = ViewDataset(index, load.views, 0, len(index), "native")
    (ours,) = batches(kernel, [request], 0, device)
    theirs: Batch = at_once(nvjpeg.DecodingTask(kernel, request, device))
    off = [_levels(a, b) for a, b in zip(ours.to_views(device), theirs.to_views(device), strict=True)]
    facts = {"levels": off, "tolerance": LEVELS, "unreadable": sorted(ours.bad)}
    return Finding(max(off) <= LEVELS and ours.bad.keys() == theirs.bad.keys(), facts)


def _levels(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference of two normalized views (B, 3, S, S), in levels of 255."""
    return 255 * ((a - b).abs().mean(dim=(0, 2, 3)).cpu() * torch.tensor(STD)).mean().item()


def _equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
