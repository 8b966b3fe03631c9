"""Estimate how many images per second this machine reads and puts through a checkpoint's network, for planning.

python transfer/throughput.py --checkpoint CHECKPOINT --data FOLDER [--image-px 224]        prints one number
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run from a checkout, without installation

import os

import torch

from adco.data.datasets.layouts import IMAGE_SUFFIXES
from adco.data.eval_loader import read_batches
from adco.data.transforms.functional import from_uint8
from adco.utils.device import parse_workers, resolve_device, resolve_workers, set_arithmetic, upload
from adco.utils.errors import UserError, command
from adco.weights.backbone import load_backbone
from transfer.cli import Parser, usual_resize
from transfer.features.reading import ImageList
from transfer.features.transforms import CROP_PX, Transform

SECONDS, MOST = 4.0, 4096  # length of a measurement; images that are listed


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure the rate and print it, in images per second."""
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", type=Path, required=True, help="a folder with images anywhere below it")
    parser.add_argument("--image-px", type=int, default=CROP_PX)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=parse_workers, default="auto")
    args = parser.parse_args(argv)
    images = first_images(args.data)
    transform = Transform("center", args.image_px, usual_resize(args.image_px))
    device = resolve_device(args.device)
    set_arithmetic(device)
    model, workers = load_backbone(args.checkpoint).module().to(device), resolve_workers(args.workers, device)
    print(f"{rate(model, images, transform, device, workers):.4g}")
    return 0


def first_images(root: Path) -> ImageList:
    """List the first few thousand images below a folder. Raises UserError when there is none."""
    paths: list[str] = []
    for folder, _, names in os.walk(root, followlinks=True):
        paths += [os.path.relpath(Path(folder, n), root) for n in sorted(names) if n.lower().endswith(IMAGE_SUFFIXES)]
        if len(paths) >= MOST:
            break
    if not paths:
        raise UserError(f"{root}: no images below it")
    return ImageList(root, tuple(paths[:MOST]), "rate")


@torch.inference_mode()
def rate(model: torch.nn.Module, images: ImageList, transform: Transform, device: torch.device, workers: int) -> float:
    """Measure images per second over a few seconds, from file to feature.

    The first batch is a warm-up and not counted, unless it is the only one.
    """
    size = 64 if device.type == "cuda" else 8
    positions = range(len(images.paths))
    start, count = time.perf_counter(), 0
    for number, batch in enumerate(read_batches(images, [transform], positions, size, workers, device)):
        if batch.readable.any():
            model(from_uint8(upload(batch.images[transform], device))).sum().item()
        if number == 0 and len(positions) > size:
            start = time.perf_counter()
            continue
        count += int(batch.readable.sum())
        if time.perf_counter() - start > SECONDS:
            break
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
