"""Frozen features of images, extracted once and cached: the input of every benchmark of this folder."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet

from adco.data.eval_loader import read_batches
from adco.data.images import BadImages
from adco.data.transforms.functional import from_uint8
from adco.models.resnet import stage_features
from adco.train.failures import is_out_of_memory
from adco.utils.device import upload
from adco.utils.errors import UserError
from adco.utils.progress import progress
from adco.weights.backbone import Backbone
from transfer.features.cache import Entry, RowsWriter
from transfer.features.reading import ImageList
from transfer.features.transforms import Transform

# VISSL's AvgPool2d(kernel, stride) for the map of each stage at 224 px, about 9,000 numbers each for a ResNet-50:
# 6x6x256, 4x4x512, 3x3x1024, 2x2x2048. Padding 0.
VISSL_POOLS = {"res2": (56, 16, 8), "res3": (28, 13, 5), "res4": (14, 8, 3), "res5": (7, 6, 1)}
KINDS = ("gap", *VISSL_POOLS)
SAVE_SECONDS = 30  # between two times that an extraction's progress is saved


@dataclass(frozen=True)
class Feature:
    """A feature of an image.

    Attributes:
        transform: how the image becomes the network's input.
        kind: `gap`, or `res2` to `res5`, the VISSL-pooled map of a stage.
    """

    transform: Transform
    kind: str = "gap"

    @property
    def name(self) -> str:
        """`center224-gap`: for file names and messages."""
        return f"{self.transform.name}-{self.kind}"


@dataclass(frozen=True)
class Extraction:
    """The features of a list of images.

    Attributes:
        rows: feature -> (N, D) float32, a row for each image of `kept`.
        kept: (N,) int64 positions in `ImageList.paths` of the images that could be read.
        unreadable: path -> reason of the others.
        computed: images that went through the network this time.
        seconds: how long the extraction took.
    """

    rows: dict[Feature, np.ndarray]
    kept: np.ndarray
    unreadable: dict[str, str]
    computed: int
    seconds: float


@dataclass(frozen=True)
class Reader:
    """How images are read and batched.

    Attributes:
        device: where the network runs.
        workers: threads that read images, 0 for none.
        batch_size: images a batch.
        max_bad_share: the share of images that may be unreadable.
    """

    device: torch.device
    workers: int = 1
    batch_size: int = 64
    max_bad_share: float = 0.0


def extract(
    backbone: Backbone, dataset: ImageList, features: Sequence[Feature], cache: Path, reader: Reader
) -> Extraction:
    """Features of images by a frozen backbone, from the cache where it has them, else all in ONE pass.

    The network is in eval mode, and its weights are hashed before and after, so that a change of them is noticed.

    Args:
        backbone: the network.
        dataset: the images.
        features: which features.
        cache: the cache's folder.
        reader: how the images are read.

    Returns:
        The features, without gradient, of the images that could be read.

    Raises:
        UserError: too many images are unreadable (it names the first), features are NaN or infinite, or the memory or
            the disk is full.
    """
    start = time.perf_counter()
    model = backbone.module().requires_grad_(False).to(reader.device)
    weights = weights_sha256(model)
    data = dataset.fingerprint()
    entries = {f: Entry(cache, f"{dataset.name}-{f.name}", _key(backbone, weights, data, f), dataset.root)
               for f in dict.fromkeys(features)}  # fmt: skip
    bad = BadImages(dataset.root, len(dataset.paths), reader.max_bad_share, "--max-bad-share")
    cached = {feature: entry.load() for feature, entry in entries.items()}
    arrays = {feature: array_and_bad[0] for feature, array_and_bad in cached.items() if array_and_bad}
    for array_and_bad in filter(None, cached.values()):
        bad.update(array_and_bad[1])
    missing = {feature: entry for feature, entry in entries.items() if feature not in arrays}
    computed = 0
    if missing:
        with enough_memory("choose a smaller --batch-size"):
            computed = _one_pass(model, weights, dataset, missing, reader, bad)
    for feature, entry in missing.items():
        array_and_bad = entry.load()
        if array_and_bad is None:
            raise UserError(f"{entry.array_path}: damaged although it was just written; check the disk, and try again")
        arrays[feature] = array_and_bad[0]
    kept = np.array([i for i, path in enumerate(dataset.paths) if path not in bad.reasons], dtype=np.int64)
    if not len(kept):
        raise UserError(f"{dataset.root}: none of the {len(dataset.paths)} {dataset.name} images can be read")
    rows = {f: arrays[f] if len(kept) == len(arrays[f]) else arrays[f][kept] for f in entries}
    if not all(np.isfinite(array).all() for array in rows.values()):
        raise UserError(f"{backbone.name}: its features hold NaN or infinity; the checkpoint's weights are broken")
    return Extraction(rows, kept, bad.reasons, computed, time.perf_counter() - start)


def pooled(stages: dict[str, Tensor], kind: str) -> Tensor:
    """The feature of one kind, (B, D), of the stages' maps (B, C, H, W): `pooled_map`, flattened channel by channel."""
    return pooled_map(stages, kind).flatten(1)


def pooled_map(stages: dict[str, Tensor], kind: str) -> Tensor:
    """The pooled map of one kind of feature: the mean over res5's map for `gap`, VISSL's average pooling for a stage.

    At other image sizes than 224 px res5 is pooled to the same 2x2 grid by a kernel one smaller than the map, the other
    stages to their grid (6x6, 4x4, 3x3) by adaptive pooling.

    Args:
        stages: `res2` to `res5` -> (B, C, H, W), square maps.
        kind: `gap`, or a stage's name.

    Returns:
        (B, C, 1, 1) for `gap`, else (B, C, grid, grid); gradient flows to the maps.

    Raises:
        UserError: the map is smaller than the grid.
    """
    if kind == "gap":
        return stages["res5"].mean(dim=(2, 3), keepdim=True)
    side, kernel, stride = VISSL_POOLS[kind]
    map_side, grid = stages[kind].shape[-1], (side - kernel) // stride + 1
    if map_side < grid:
        raise UserError(
            f"feature {kind}: its map has side {map_side}, too small for {grid}x{grid}; take a larger image"
        )
    if kind == "res5":
        return nn.functional.avg_pool2d(stages[kind], map_side - 1, 1)
    if map_side != side:
        return nn.functional.adaptive_avg_pool2d(stages[kind], grid)
    return nn.functional.avg_pool2d(stages[kind], kernel, stride)


def weights_sha256(model: nn.Module) -> str:
    """The sha256 of all tensors of a model, parameters and buffers: their names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def enough_memory(advice: str) -> Iterator[None]:
    """Turn an error of a full memory, of the CPU or the GPU, into a UserError with `advice`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"out of memory; {advice}") from error


@torch.inference_mode()
def _one_pass(
    model: ResNet,
    weights: str,
    dataset: ImageList,
    missing: dict[Feature, Entry],
    reader: Reader,
    bad: BadImages,
) -> int:
    """Read every image once and write all missing arrays; the rows of unreadable images are NaN.

    Resumes where an earlier pass for the same arrays stopped. Returns how many images were computed.
    """
    widths = {f: _forward(model, torch.zeros(1, 3, f.transform.crop_px, f.transform.crop_px, dtype=torch.uint8), [f],
                          reader.device)[f].shape[1] for f in missing}  # fmt: skip
    count, transforms = len(dataset.paths), dict.fromkeys(feature.transform for feature in missing)
    _announce(count, widths, missing)
    with _writers(missing, count, widths, lambda: weights_sha256(model) == weights) as writers:
        first = _common_start(writers, bad)
        left, device = range(first, count), reader.device
        made = read_batches(dataset, transforms, left, reader.batch_size, reader.workers, device)
        computed, saved = 0, time.monotonic()
        with progress(count, f"features of {dataset.name}", "images", first) as bar, closing(made) as batches:
            for batch in batches:
                bad.update(batch.bad)
                outputs: dict[Feature, Tensor] = {}
                for transform, images in batch.images.items() if batch.readable.any() else ():
                    outputs |= _forward(model, images, [f for f in missing if f.transform == transform], device)
                for feature, writer in writers.items():
                    rows = np.full((len(batch.positions), writer.width), np.nan, dtype=np.float32)
                    if outputs:
                        rows[batch.readable] = outputs[feature].cpu().numpy()
                    writer.append(rows, batch.bad)
                computed += int(batch.readable.sum())
                bar.update(len(batch.positions))
                if time.monotonic() - saved > SAVE_SECONDS and weights_sha256(model) == weights:
                    for writer in writers.values():
                        writer.save_progress()
                    saved = time.monotonic()
        if weights_sha256(model) != weights:
            raise RuntimeError("the frozen backbone's weights changed during extraction; its features are invalid")
        for feature, entry in missing.items():
            entry.finish(writers[feature], bad.reasons)
    return computed


@contextmanager
def _writers(
    missing: dict[Feature, Entry], rows: int, widths: dict[Feature, int], trustworthy: Callable[[], bool]
) -> Iterator[dict[Feature, RowsWriter]]:
    """A writer a feature. When the block fails, the rows so far are kept for the next time if they are trustworthy."""
    writers = {feature: RowsWriter(entry, rows, widths[feature]) for feature, entry in missing.items()}
    try:
        yield writers
    except BaseException:
        keep = len({writer.written for writer in writers.values()}) == 1 and trustworthy()
        for writer in writers.values():
            writer.abort(keep)
        raise


def _announce(rows: int, widths: dict[Feature, int], missing: dict[Feature, Entry]) -> None:
    """Print the arrays' size on the disk. Raises UserError when it is more than is free."""
    folder = next(iter(missing.values())).folder
    needed = sum(rows * width * 4 for width in widths.values())
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    kinds = ", ".join(f"{f.name} {width}" for f, width in widths.items())
    print(f"features: {rows} rows of {kinds}: {needed / 2**20:.0f} MiB on disk, {free / 2**30:.1f} GiB free")
    if needed > free:
        raise UserError(f"{folder}: the features need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
                        "choose another --cache-dir")  # fmt: skip


def _common_start(writers: dict[Feature, RowsWriter], bad: BadImages) -> int:
    """The row at which all arrays resume; arrays that stopped at different rows start anew, as one pass feeds all."""
    if len({writer.written for writer in writers.values()}) > 1:
        for writer in writers.values():
            writer.restart()
    writer = next(iter(writers.values()))
    bad.update(writer.bad)
    return writer.written


def _forward(model: ResNet, images: Tensor, features: Sequence[Feature], device: torch.device) -> dict[Feature, Tensor]:
    stages = stage_features(model, from_uint8(upload(images, device)))
    return {feature: pooled(stages, feature.kind) for feature in features}


def _key(backbone: Backbone, weights: str, data: str, feature: Feature) -> dict[str, str]:
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, pillow {PIL.__version__}"
    key = {"checkpoint": backbone.sha256, "weights": weights, "data": data, "versions": versions}
    return key | {"transform": feature.transform.name, "kind": feature.kind}
