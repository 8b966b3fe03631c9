"""Frozen features of pictures, extracted once and cached: what every benchmark of this folder starts from."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from adco.augment import from_uint8
from adco.backbone import Backbone, stage_features
from adco.errors import UserError
from adco.images import BadImages, UnreadableImage, read_image
from adco.progress import progress
from adco.stopping import leave_ctrl_c
from transfer.cache import Entry, RowsWriter
from transfer.transforms import Transform

# VISSL's AvgPool2d(kernel, stride) for the map of each stage at 224 px, about 9,000 numbers each for a ResNet-50:
# 6x6x256, 4x4x512, 3x3x1024, 2x2x2048. Padding 0.
VISSL_POOLS = {"res2": (56, 16, 8), "res3": (28, 13, 5), "res4": (14, 8, 3), "res5": (7, 6, 1)}
KINDS = ("gap", *VISSL_POOLS)
NOTE_SECONDS = 30  # between two notes of how far an extraction is


@dataclass(frozen=True)
class Feature:
    """What is computed of a picture: a transform, and `gap` or the VISSL-pooled map of a stage, `res2` to `res5`."""

    transform: Transform
    kind: str = "gap"

    @property
    def name(self) -> str:
        return f"{self.transform.name}-{self.kind}"


@dataclass(frozen=True)
class Pictures:
    """Files below a folder, in a fixed order. name: a word for file names and progress, e.g. `val`."""

    root: Path
    paths: tuple[str, ...]
    name: str

    def fingerprint(self) -> str:
        """sha256 of paths, sizes and times of change: a picture that was exchanged makes another data set.

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
class Extraction:
    """Rows (N, D) float32 per feature for the pictures `kept` (N,) (positions in `Pictures.paths`), in their order.

    unreadable: reason by path, of all that are not kept. computed: pictures that went through the network this time.
    """

    rows: dict[Feature, np.ndarray]
    kept: np.ndarray
    unreadable: dict[str, str]
    computed: int
    seconds: float


@dataclass(frozen=True)
class Reader:
    """How pictures are read and batched. max_bad_share: unreadable pictures beyond this share are an error."""

    device: torch.device
    workers: int = 2
    batch_size: int = 64
    max_bad_share: float = 0.0


def extract(
    backbone: Backbone, pictures: Pictures, features: Sequence[Feature], cache: Path, reader: Reader
) -> Extraction:
    """All `features` of all `pictures` by the frozen backbone, from the cache where it has them, else in ONE pass.

    The network is in eval mode without gradients, and its weights are hashed before and after: they cannot have moved.
    Raises UserError for too many unreadable pictures, naming the first.
    """
    begun = time.perf_counter()
    model = backbone.module().requires_grad_(False).to(reader.device)
    weights = weights_sha256(model)
    data = pictures.fingerprint()
    entries = {f: Entry(cache, f"{pictures.name}-{f.name}", _key(backbone, weights, data, f), pictures.root)
               for f in dict.fromkeys(features)}  # fmt: skip
    bad = BadImages(pictures.root, len(pictures.paths), reader.max_bad_share, "--max-bad-share")
    loaded = {feature: entry.load() for feature, entry in entries.items()}
    missing = {feature: entry for feature, entry in entries.items() if loaded[feature] is None}
    for found in loaded.values():
        bad.update(found[1] if found else {})
    computed = 0
    if missing:
        with _mendable():
            computed = _one_pass(model, weights, pictures, missing, reader, bad)
        loaded.update({feature: entry.load() for feature, entry in missing.items()})
    kept = np.array([i for i, path in enumerate(pictures.paths) if path not in bad.reasons], dtype=np.int64)
    if not len(kept):
        raise UserError(f"{pictures.root}: none of the {len(pictures.paths)} {pictures.name} pictures can be read")
    rows = {feature: found[0] if len(kept) == len(found[0]) else found[0][kept] for feature, found in loaded.items()}
    if not all(np.isfinite(array).all() for array in rows.values()):
        raise UserError(f"{backbone.name}: its features hold NaN or infinity; the checkpoint's weights are broken")
    return Extraction(rows, kept, bad.reasons, computed, time.perf_counter() - begun)


def pooled(stages: dict[str, Tensor], kind: str) -> Tensor:
    """The feature of one kind, (B, D), from the stage maps: `pooled_map`, flattened channel by channel."""
    return pooled_map(stages, kind).flatten(1)


def pooled_map(stages: dict[str, Tensor], kind: str) -> Tensor:
    """gap: the mean over the res5 map, (B, C, 1, 1). A stage: VISSL's average pooling.

    At other image sizes than 224 px res5 is pooled to the same 2x2 grid by a kernel one smaller than the map, the other
    stages to their grid (6x6, 4x4, 3x3) by adaptive pooling. Raises UserError where the map is smaller than the grid.
    """
    if kind == "gap":
        return stages["res5"].mean(dim=(2, 3), keepdim=True)
    side, kernel, stride = VISSL_POOLS[kind]
    found, grid = stages[kind].shape[-1], (side - kernel) // stride + 1
    if found < grid:
        raise UserError(f"feature {kind}: its map has side {found}, too small for {grid}x{grid}; take a larger image")
    if kind == "res5":
        return nn.functional.avg_pool2d(stages[kind], found - 1, 1)
    if found != side:
        return nn.functional.adaptive_avg_pool2d(stages[kind], grid)
    return nn.functional.avg_pool2d(stages[kind], kernel, stride)


def weights_sha256(model: nn.Module) -> str:
    """sha256 of all tensors of a model, parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Decoded(Dataset):
    """Picture i -> its uint8 tensor for each transform, or the reason why there is none."""

    def __init__(self, pictures: Pictures, transforms: Sequence[Transform]):
        self.pictures, self.transforms = pictures, tuple(transforms)

    def __len__(self) -> int:
        return len(self.pictures.paths)

    def __getitem__(self, i: int) -> tuple[int, dict[Transform, Tensor] | str]:
        try:
            image = read_image(self.pictures.root / self.pictures.paths[i])
        except UnreadableImage as error:
            return i, error.reason
        return i, {transform: transform(image) for transform in self.transforms}


def collate(items: list) -> tuple[list[int], list[int], dict[Transform, Tensor], dict[int, str]]:
    """-> all positions, those with a picture, their stacked tensors, and the reasons of the others."""
    good = [(i, tensors) for i, tensors in items if not isinstance(tensors, str)]
    stacks = defaultdict(list)
    for _, tensors in good:
        for transform, tensor in tensors.items():
            stacks[transform].append(tensor)
    bad = {i: reason for i, reason in items if isinstance(reason, str)}
    return [i for i, _ in items], [i for i, _ in good], {t: torch.stack(s) for t, s in stacks.items()}, bad


@contextmanager
def _mendable() -> Iterator[None]:
    """Turn what a smaller setting would mend into a UserError: a full GPU memory, a reading process that was killed."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU's memory is full; choose a smaller --batch-size") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"a reading process died ({reason}); choose fewer --workers, 0 for none") from error


@torch.inference_mode()
def _one_pass(
    model: nn.Module,
    weights: str,
    pictures: Pictures,
    missing: dict[Feature, Entry],
    reader: Reader,
    bad: BadImages,
) -> int:
    """Read every picture once and write all the missing arrays, rows of unreadable pictures as NaN.

    Goes on where an earlier pass for the same arrays stopped. Returns how many pictures were computed.
    """
    widths = {f: _forward(model, torch.zeros(1, 3, f.transform.crop_px, f.transform.crop_px, dtype=torch.uint8), [f],
                          reader.device)[f].shape[1] for f in missing}  # fmt: skip
    dataset = Decoded(pictures, dict.fromkeys(feature.transform for feature in missing))
    _announce(len(dataset), widths, missing)
    with _writers(missing, len(dataset), widths, lambda: weights_sha256(model) == weights) as writers:
        first = _common_start(writers, bad)
        loader = DataLoader(
            Subset(dataset, range(first, len(dataset))),
            reader.batch_size,
            num_workers=reader.workers,
            collate_fn=collate,
            pin_memory=reader.device.type == "cuda",
            worker_init_fn=leave_ctrl_c,
        )
        computed, noted = 0, time.monotonic()
        with progress(len(dataset), f"features of {pictures.name}", "images", first) as bar:
            for positions, good, inputs, reasons in loader:
                bad.update({pictures.paths[i]: reason for i, reason in reasons.items()})
                found = {}
                for transform, images in inputs.items():
                    found |= _forward(model, images, [f for f in missing if f.transform == transform], reader.device)
                for feature, writer in writers.items():
                    rows = np.full((len(positions), writer.width), np.nan, dtype=np.float32)
                    if good:
                        rows[np.isin(positions, good)] = found[feature].cpu().numpy()
                    writer.append(rows, {pictures.paths[i]: reason for i, reason in reasons.items()})
                computed += len(good)
                bar.update(len(positions))
                if time.monotonic() - noted > NOTE_SECONDS and weights_sha256(model) == weights:
                    for writer in writers.values():
                        writer.note()
                    noted = time.monotonic()
        if weights_sha256(model) != weights:
            raise RuntimeError("the frozen backbone's weights changed during extraction; its features mean nothing")
        for feature, entry in missing.items():
            entry.finish(writers[feature], bad.reasons)
    return computed


@contextmanager
def _writers(missing: dict[Feature, Entry], rows: int, widths: dict[Feature, int], trustworthy: Callable[[], bool]):
    """A writer per feature. When the block fails, what was written is noted for the next time if it is trustworthy."""
    writers = {feature: RowsWriter(entry, rows, widths[feature]) for feature, entry in missing.items()}
    try:
        yield writers
    except BaseException:
        keep = len({writer.written for writer in writers.values()}) == 1 and trustworthy()
        for writer in writers.values():
            writer.leave(keep)
        raise


def _announce(rows: int, widths: dict[Feature, int], missing: dict[Feature, Entry]) -> None:
    """Print what the arrays will take on the disk. Raises UserError when that is more than there is."""
    folder = next(iter(missing.values())).folder
    wanted = sum(rows * width * 4 for width in widths.values())
    free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
    kinds = ", ".join(f"{f.name} {width}" for f, width in widths.items())
    print(f"features: {rows} rows of {kinds}: {wanted / 2**20:.0f} MiB on disk, {free / 2**30:.1f} GiB free")
    if wanted > free:
        raise UserError(f"{folder}: the features need {wanted / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free; "
                        "choose another --cache-dir")  # fmt: skip


def _common_start(writers: dict[Feature, RowsWriter], bad: BadImages) -> int:
    """The row at which all arrays go on; arrays that stopped at different rows start anew, as one pass feeds all."""
    if len({writer.written for writer in writers.values()}) > 1:
        for writer in writers.values():
            writer.restart()
    writer = next(iter(writers.values()))
    bad.update(writer.bad)
    return writer.written


def _forward(model: nn.Module, images: Tensor, features: Sequence[Feature], device: torch.device) -> dict:
    stages = stage_features(model, from_uint8(images.to(device, non_blocking=True)))
    return {feature: pooled(stages, feature.kind) for feature in features}


def _key(backbone: Backbone, weights: str, data: str, feature: Feature) -> dict[str, str]:
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}, pillow {PIL.__version__}"
    key = {"checkpoint": backbone.sha256, "weights": weights, "data": data, "versions": versions}
    return key | {"transform": feature.transform.name, "kind": feature.kind}
