"""Images for evaluation: in the order of the positions, and black where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from adco.data.eval_loader import NO_IMAGE, read_batches
from adco.data.images import index_folder
from adco.data.transforms.evaluation import EvalTransform

CPU = torch.device("cpu")
CENTER, FIVE = EvalTransform("center", 8, 9), EvalTransform("five", 8, 9)


@pytest.fixture
def index(tmp_path):
    """Six images of one colour each, the fourth one unreadable."""
    for i in range(6):
        Image.new("RGB", (20, 12), (40 * i + 5, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    return index_folder(tmp_path)


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_follow_the_positions_whatever_the_threads(index, workers):
    positions = [5, 3, NO_IMAGE, 0, 1]
    first, second = read_batches(index, [CENTER, FIVE], positions, 3, workers, CPU)
    assert [*first.positions, *second.positions] == positions
    assert (first.readable.tolist(), second.readable.tolist()) == ([True, False, False], [True, True])
    assert first.pixels[CENTER][:, 0, 0, 0].tolist() == [205, 0, 0]
    assert second.pixels[CENTER][:, 0, 0, 0].tolist() == [5, 45]
    assert list(first.bad) == ["3.png"] and not second.bad
    assert first.pixels[FIVE].shape == (3, 5, 3, 8, 8) and first.pixels[FIVE].dtype == torch.uint8


def test_images_are_the_readable_ones(index):
    (batch,) = read_batches(index, [CENTER], np.array([3, 1, NO_IMAGE, 2]), 4, 0, CPU)
    assert batch.images[CENTER][:, 0, 0, 0].tolist() == [45, 85]
    (whole,) = read_batches(index, [CENTER], [2, 1], 4, 0, CPU)
    assert whole.images is whole.pixels
