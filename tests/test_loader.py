"""Batches depend on (seed, epoch, step) alone; unreadable images are replaced and named."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from adco.config import View
from adco.images import index_folder
from adco.loader import ViewDataset, batches, requests

CPU = torch.device("cpu")
SPECS = [View(px=24), View(px=16)]


def loaded(root, first, last, workers, seed=0, batch=10):
    index = index_folder(root)
    dataset = ViewDataset(index, SPECS, seed, max_bad=len(index))
    return list(batches(dataset, requests(seed, len(index), batch, first, last), workers, CPU))


def same(a, b) -> bool:
    pixels = all(torch.equal(x, y) for x, y in zip(a.pixels, b.pixels, strict=True))
    views = zip(a.to_views(CPU), b.to_views(CPU), strict=True)
    return pixels and all(torch.equal(x, y) for x, y in views)


def test_any_number_of_workers_and_any_start_give_the_same_batches(pictures):
    whole = loaded(pictures / "train", 0, 9, workers=0)
    assert [tuple(p.shape) for p in whole[0].pixels] == [(10, 3, 24, 24), (10, 3, 16, 16)]
    for other in (loaded(pictures / "train", 0, 9, workers=2), whole[:5] + loaded(pictures / "train", 5, 9, workers=1)):
        assert len(other) == 9
        assert all(same(a, b) for a, b in zip(whole, other, strict=True))


def test_another_seed_or_epoch_gives_other_batches(pictures):
    first, second = loaded(pictures / "train", 0, 1, 0)[0], loaded(pictures / "train", 4, 5, 0)[0]  # 4 steps an epoch
    assert not same(first, second)
    assert not same(first, loaded(pictures / "train", 0, 1, 0, seed=1)[0])


def test_an_epoch_shows_no_sample_twice_and_leaves_the_remainder_out():
    steps = list(requests(seed=0, count=48, batch=10, first_step=0, last_step=8))
    for epoch, part in enumerate((steps[:4], steps[4:])):
        shown = np.concatenate([request.samples for request in part])
        assert len(set(shown.tolist())) == 40
        assert {request.epoch for request in part} == {epoch}


@pytest.fixture
def damaged(pictures, tmp_path):
    """The training pictures with one truncated, one empty, and one that is no picture."""
    root = tmp_path / "damaged"
    shutil.copytree(pictures / "train", root)
    files = sorted(root.rglob("*.png"))
    files[3].write_bytes(files[3].read_bytes()[:200])
    files[20].write_bytes(b"")
    files[-1].write_text("<html>not found</html>")
    return root, [files[3], files[20], files[-1]]


def test_unreadable_images_are_named_and_the_next_readable_one_stands_in(damaged):
    root, files = damaged
    found = {}
    for batch in loaded(root, 0, 4, workers=0, batch=12):
        assert all((pixels.flatten(1).float().std(dim=1) > 0).all() for pixels in batch.pixels)
        found.update(batch.bad)
    assert set(found) == {path.relative_to(root).as_posix() for path in files}
