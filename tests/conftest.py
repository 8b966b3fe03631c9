"""What several tests need: a folder of small images with something to learn in them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

torch.set_num_threads(1)  # the tests are many small operations, and CI has two cores for several processes
os.environ["OMP_NUM_THREADS"] = "1"  # the same for tools started by tests


def write_pictures(root: Path, classes: int, each: int, px: int = 40) -> Path:
    """`root/CLASS/N.png`: stripes whose direction is the class, in random colours, over noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:px, 0:px]
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(each):
            angle = np.pi * label / classes
            wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 0.9 + rng.uniform(0, 6))
            image = 128 + 60 * wave[..., None] * rng.uniform(0.4, 1, 3) + rng.normal(0, 15, (px, px, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
    return root


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """An ImageNet-like folder: train with 3 classes of 16 images, val with 3 of 6."""
    root = tmp_path_factory.mktemp("images")
    write_pictures(root / "train", 3, 16)
    write_pictures(root / "val", 3, 6)
    return root
