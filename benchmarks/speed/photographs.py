"""Generated images with the statistics of photographs: a falling power spectrum, related colours, edges."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def photograph(seed: int, width: int = 160, height: int = 120) -> np.ndarray:
    """Generate an image: 1/f noise, partly common to the colours, two shaded objects with hard edges, grain.

    Returns:
        (height, width, 3) uint8.
    """
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    layers = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency).real for _ in range(4)]
    common, *colored = (layer / layer.std() for layer in layers)
    image = 120 + 45 * common[..., None] + 18 * np.stack(colored, axis=-1) + rng.uniform(-40, 40, 3)
    for _ in range(2):
        cx, cy, rx, ry = (
            rng.uniform(0.2, 0.8) * width,
            rng.uniform(0.2, 0.8) * height,
            *rng.uniform(0.1, 0.3, 2) * width,
        )
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
        image[inside] = (0.3 * image + rng.uniform(0, 255, 3) * (0.5 + x / width)[..., None])[inside]
    return (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    """The content of a JPEG file of (H, W, 3) uint8 pixels; options are Pillow's, such as quality and subsampling."""
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG", **{"quality": 90, **options})
        return file.getvalue()


def write_photographs(root: Path, count: int, classes: int = 1, width: int = 160, height: int = 120) -> Path:
    """Write `count` photographs to `root/CLASS/N.jpg`; returns `root`."""
    for number in range(count):
        path = root / f"class{number % classes}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photograph(number, width, height)))
    return root
