"""Batches depend on (seed, epoch, step) alone, on every backend; unreadable images are replaced and named."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as F

from adco.config.schema import ViewConfig
from adco.data import loader, native
from adco.data.images import index_folder
from adco.data.loader import ViewDataset, batches, requests, resolve_backend, shuffled_steps
from adco.data.transforms import functional
from adco.data.transforms.reference import reference_levels
from adco.utils.errors import UserError
from benchmarks.speed.photographs import write_photographs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SPECS = [ViewConfig(px=24, solarize_p=0.2), ViewConfig(px=16)]
BACKENDS = ("native", "device", "reference")
needs_kernel = pytest.mark.skipif(not native.available(), reason="the C kernel is not built: no compiler at install")


def loaded(root, first, last, workers, seed=0, batch=10, backend="auto", **part):
    index = index_folder(root)
    dataset = ViewDataset(index, SPECS, seed, len(index), backend)
    return list(batches(dataset, requests(seed, len(index), batch, first, last, **part), workers, CPU))


def same(a, b) -> bool:
    pixels = all(torch.equal(x, y) for x, y in zip(a.pixels, b.pixels, strict=True))
    views = zip(a.to_views(CPU), b.to_views(CPU), strict=True)
    return pixels and all(torch.equal(x, y) for x, y in views)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"), 24, classes=2, width=80, height=60)


@needs_kernel
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_number_of_workers_and_any_start_give_the_same_batches(images, backend):
    whole = loaded(images / "train", 0, 9, workers=0, backend=backend)
    assert [tuple(p.shape) for p in whole[0].pixels] == [(10, 3, 24, 24), (10, 3, 16, 16)]
    parts = whole[:5] + loaded(images / "train", 5, 9, workers=1, backend=backend)
    for other in (loaded(images / "train", 0, 9, workers=2, backend=backend), parts):
        assert len(other) == 9
        assert all(same(a, b) for a, b in zip(whole, other, strict=True))


@pytest.mark.parametrize("backend", ["reference", "device"])
def test_pillow_works_in_threads_and_no_process_is_started(images, monkeypatch, backend):
    """A fork beside the threads of CUDA or gloo may hang or crash the child."""
    monkeypatch.setattr(os, "fork", None)
    monkeypatch.setattr(native, "available", lambda: False)
    whole = loaded(images / "train", 0, 9, workers=0, backend=backend)
    for other in (loaded(images / "train", 0, 9, workers, backend=backend) for workers in (1, 3)):
        assert all(same(a, b) for a, b in zip(whole, other, strict=True))


def test_reference_views_are_torchvisions_to_the_bit(images):
    index = index_folder(images / "train")
    dataset = ViewDataset(index, SPECS, 0, 0, "reference")
    request = next(requests(0, len(index), 8, 0, 1))
    made = dataset[request].to_views(CPU)
    for spec, draw, view in zip(SPECS, dataset.draws(request), made, strict=True):
        for row, sample in enumerate(request.samples):
            levels = reference_levels(index.image(int(sample)), spec.px, spec.scale, draw, row)
            theirs = F.normalize(F.to_tensor(levels.transpose(1, 2, 0).copy()), [*functional.MEAN], [*functional.STD])
            assert torch.equal(view[row], theirs)


def test_another_seed_or_epoch_gives_other_batches(images):
    first, second = loaded(images / "train", 0, 1, 0)[0], loaded(images / "train", 4, 5, 0)[0]  # 4 steps an epoch
    assert not same(first, second)
    assert not same(first, loaded(images / "train", 0, 1, 0, seed=1)[0])


def test_ranks_together_see_what_one_process_sees(images):
    whole = loaded(images / "train", 3, 6, workers=0, batch=12)
    parts = [loaded(images / "train", 3, 6, workers=0, batch=12, rank=rank, ranks=3) for rank in range(3)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for v in range(len(SPECS)):
            assert torch.equal(torch.cat([share.pixels[v] for share in shares]), batch.pixels[v])
    with pytest.raises(ValueError, match="rank 0 of 5"):
        next(requests(0, 48, 12, 0, 1, rank=0, ranks=5))


def test_an_epoch_shows_no_sample_twice_and_leaves_the_remainder_out():
    steps = list(requests(seed=0, count=48, batch=10, first_step=0, last_step=8))
    for epoch, part in enumerate((steps[:4], steps[4:])):
        shown = np.concatenate([request.samples for request in part])
        assert len(set(shown.tolist())) == 40
        assert {request.epoch for request in part} == {epoch}


def test_steps_are_the_same_wherever_the_training_starts():
    steps = list(shuffled_steps(seed=3, count=7, steps_per_epoch=3, first_step=0, last_step=9))
    assert [step[:2] for step in steps] == [(epoch, place) for epoch in range(3) for place in range(3)]
    assert all(sorted(order) == list(range(7)) for _, _, order in steps)
    resumed = shuffled_steps(seed=3, count=7, steps_per_epoch=3, first_step=1, last_step=6, first_epoch=1)
    for (epoch, place, order), (other_epoch, other_place, other_order) in zip(steps[4:9], resumed, strict=True):
        assert (epoch, place) == (other_epoch, other_place) and np.array_equal(order, other_order)


@needs_kernel
def test_backends_make_the_same_views_to_within_two_levels(photographs):
    made = {backend: loaded(photographs, 0, 2, 0, batch=12, backend=backend) for backend in BACKENDS}
    std = torch.tensor(functional.STD).view(3, 1, 1)
    for step in range(2):
        for v in range(len(SPECS)):
            ours, device, reference = (made[name][step].to_views(CPU)[v] for name in BACKENDS)
            assert ours.is_contiguous(memory_format=torch.channels_last)
            assert ((ours - reference).abs() * std * 255).mean() < 2
            assert ((device - reference).abs() * std * 255).mean() < 2
            assert not torch.equal(ours, reference)  # they are three programs


@needs_kernel
def test_a_batch_in_use_is_never_painted_over(images):
    index = index_folder(images / "train")
    dataset = ViewDataset(index, SPECS, 0, 0, "native")
    kept, copies = [], []
    for batch in batches(dataset, requests(0, len(index), 10, 0, 12), 2, CPU):
        kept.append(batch.to_views(CPU)[0])
        copies.append(kept[-1].clone())
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    places = {view.data_ptr() for view in kept}
    assert len(places) == 12
    del kept
    again = [batch.pixels[0].data_ptr() for batch in batches(dataset, requests(0, len(index), 10, 0, 12), 2, CPU)]
    assert len(set(again)) < 12  # and memory is used again where nothing refers to it


def test_auto_is_native_on_the_cpu_and_where_there_are_threads_enough(monkeypatch, capsys):
    monkeypatch.setattr(native, "available", lambda: True)
    assert resolve_backend("auto", CPU, 0) == "native"
    assert resolve_backend("auto", CUDA, 16) == "native"
    assert resolve_backend("auto", CUDA, 2) == "device"
    assert resolve_backend("reference", CUDA, 16) == "reference"
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(loader, "_noted", set())
    assert [resolve_backend("auto", CPU, 2) for _ in range(2)] == ["device", "device"]
    assert capsys.readouterr().err.count("C kernel is not built") == 1
    with pytest.raises(UserError, match="data.backend=native"):
        resolve_backend("native", CPU, 2)


@needs_kernel
def test_without_the_kernel_the_device_backend_cuts_the_same_crops(photographs, monkeypatch):
    with_kernel = loaded(photographs, 0, 1, 0, backend="device")[0]
    monkeypatch.setattr(native, "available", lambda: False)
    without = loaded(photographs, 0, 1, 2, backend="auto")[0]
    for a, b in zip(with_kernel.pixels, without.pixels, strict=True):
        assert (a.int() - b.int()).abs().max() <= 1
    assert with_kernel.choices and without.choices
    for a, b in zip(with_kernel.choices, without.choices, strict=True):
        assert torch.equal(a.factors, b.factors)


@pytest.fixture
def damaged(images, tmp_path):
    """The training images with one truncated, one empty, and one that is no image."""
    root = tmp_path / "damaged"
    shutil.copytree(images / "train", root)
    files = sorted(root.rglob("*.png"))
    files[3].write_bytes(files[3].read_bytes()[:200])
    files[20].write_bytes(b"")
    files[-1].write_text("<html>not found</html>")
    return root, [files[3], files[20], files[-1]]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_unreadable_images_are_named_and_the_next_readable_one_stands_in(damaged, backend):
    root, files = damaged
    bad = {}
    for batch in loaded(root, 0, 4, workers=2, batch=12, backend=backend):
        assert all((pixels.flatten(1).float().std(dim=1) > 0).all() for pixels in batch.pixels)
        bad.update(batch.bad)
    assert set(bad) == {path.relative_to(root).as_posix() for path in files}


def test_a_truncated_jpeg_is_noticed_even_below_the_crop(photographs, tmp_path):
    root = tmp_path / "cut"
    shutil.copytree(photographs, root)
    broken = sorted(root.rglob("*.jpg"))[5]
    broken.write_bytes(broken.read_bytes()[:-300])
    batch = loaded(root, 0, 1, 0, batch=24)[0]
    assert list(batch.bad) == [broken.relative_to(root).as_posix()]
