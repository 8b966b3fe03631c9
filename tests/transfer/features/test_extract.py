"""transfer/features/extract.py, transforms.py and cache.py: what a feature is, and when it is computed anew."""

import json
import os
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import transfer.features.extract as features_module
import transfer.features.reading as reading_module
from adco.data.images import index_folder
from adco.data.transforms.functional import from_uint8
from adco.utils.errors import UserError
from adco.utils.progress import progress
from adco.weights.backbone import load_backbone
from tests.transfer.data import files_below, make_folder
from transfer.features.extract import Feature, ImageList, Reader, extract, pooled, weights_sha256
from transfer.features.transforms import Transform

GAP = Feature(Transform("center", 32, 36))
RES5 = Feature(Transform("squash", 64, 72), "res5")
CPU = Reader(torch.device("cpu"), workers=0, batch_size=5)


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("random:resnet18")


@pytest.fixture
def dataset(tmp_path):
    index = index_folder(make_folder(tmp_path / "data", train=4, val=1) / "train")
    return ImageList(index.root, index.paths, "train")


@pytest.fixture
def reads(monkeypatch):
    """The paths decoded so far."""
    seen, read = [], reading_module.read_image
    monkeypatch.setattr(reading_module, "read_image", lambda path: (seen.append(path), read(path))[1])
    return seen


# transforms


def test_center_keeps_the_aspect_and_squash_keeps_everything():
    """A 200x100 image, left tenth red: the central square never sees it, the squashed image does, a tenth wide."""
    image = Image.new("RGB", (200, 100))
    image.paste((255, 0, 0), (0, 0, 20, 100))
    center, squash = (Transform(fit, 64, 64)(image) for fit in ("center", "squash"))
    assert center.shape == squash.shape == (3, 64, 64) and center.dtype == torch.uint8
    assert center[0].max() == 0
    assert [bool(squash[0, 32, x] > 128) for x in (0, 5, 8, 63)] == [True, True, False, False]


def test_resize_is_antialiased():
    """A one-pixel checkerboard shrunk eight times is grey; without antialiasing it would be black or white."""
    board = np.indices((512, 512)).sum(axis=0) % 2 * 255
    image = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    for fit in ("center", "squash"):
        assert set(Transform(fit, 64, 64)(image).unique().tolist()) <= {127, 128}


def test_names_show_every_deviation():
    assert Transform().name == "center224"
    assert Transform("squash").name == "squash224"
    assert Transform("center", 128, 146).name == "center128-resize146"
    assert Transform("center", 224, 224).name == "center224-resize224"


@pytest.mark.parametrize(("crop", "resize"), [(16, 32), (128, 100)])
def test_sizes_that_make_no_sense_are_errors(crop, resize):
    with pytest.raises(UserError, match=f"{crop} px with resize {resize}"):
        Transform("center", crop, resize)


def test_from_uint8_takes_out_imagenet_statistics():
    image = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(124 / 255 - 0.485) / 0.229, (116 / 255 - 0.456) / 0.224, (104 / 255 - 0.406) / 0.225]
    assert from_uint8(image).flatten().tolist() == pytest.approx(expected, abs=1e-5)


# feature kinds


def test_vissl_res5_is_the_mean_of_four_overlapping_windows():
    """7x7 -> 2x2 by windows of 6 moved by 1, flattened channel by channel: written out as loops."""
    res5 = torch.randn(2, 5, 7, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.empty(2, 5, 2, 2)
    for y in range(2):
        for x in range(2):
            for c in range(5):
                expected[:, c, y, x] = res5[:, c, y : y + 6, x : x + 6].reshape(2, 36).mean(dim=1)
    torch.testing.assert_close(pooled({"res5": res5}, "res5"), expected.reshape(2, 20))


@pytest.mark.parametrize(
    ("kind", "side", "channels", "width"),
    [("res2", 56, 256, 9216), ("res3", 28, 512, 8192), ("res4", 14, 1024, 9216), ("res5", 7, 2048, 8192)],
)
def test_vissl_widths_of_a_resnet50(kind, side, channels, width):
    assert pooled({kind: torch.zeros(1, channels, side, side)}, kind).shape == (1, width)


def test_grids_stay_at_other_sizes_and_maps_too_small_are_refused():
    for side in (2, 4, 28):
        assert pooled({"res5": torch.zeros(1, 3, side, side)}, "res5").shape == (1, 12)
    for kind, side, grid in (("res2", 24, 6), ("res3", 12, 4), ("res4", 6, 3)):
        maps = torch.randn(1, 3, side, side)
        expected = torch.nn.functional.adaptive_avg_pool2d(maps, grid).flatten(1)
        torch.testing.assert_close(pooled({kind: maps}, kind), expected)
    for kind, side in (("res5", 1), ("res4", 2)):
        with pytest.raises(UserError, match=f"{kind}: its map has side {side}"):
            pooled({kind: torch.zeros(1, 3, side, side)}, kind)


def test_square_and_five_crops():
    """`square` loses a tenth on each side of a squashed image; `five` are the corners and the centre."""
    image = Image.new("RGB", (200, 100))
    image.paste((255, 0, 0), (0, 0, 20, 100))
    assert Transform("square", 64, 80)(image)[0, 32, 0] < 128  # 8 of 80 columns are red, 8 are cut off
    five = Transform("five", 64, 80)(image)
    assert five.shape == (5, 3, 64, 64) and [bool(crop[0, 5, 0] > 128) for crop in five] == [1, 0, 1, 0, 0]


def test_gap_is_what_torchvision_computes(backbone, dataset, tmp_path):
    done = extract(backbone, dataset, [GAP], tmp_path / "cache", CPU)
    images = torch.stack([GAP.transform(Image.open(dataset.root / path).convert("RGB")) for path in dataset.paths])
    with torch.no_grad():
        expected = backbone.module()(from_uint8(images))
    torch.testing.assert_close(torch.from_numpy(done.rows[GAP]), expected, rtol=1e-4, atol=1e-5)


# extraction


def test_one_pass_gives_every_feature(backbone, dataset, tmp_path, reads):
    done = extract(backbone, dataset, [GAP, RES5], tmp_path / "cache", CPU)
    assert len(reads) == len(dataset.paths) == done.computed == 12  # decoded once, for two transforms
    assert done.rows[GAP].shape == (12, 512) and done.rows[RES5].shape == (12, 2048)
    for feature in (GAP, RES5):
        alone = extract(backbone, dataset, [feature], tmp_path / f"cache-{feature.kind}", CPU)
        np.testing.assert_array_equal(alone.rows[feature], done.rows[feature])


def test_threads_change_nothing_and_no_process_is_started(backbone, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fork", None)  # beside CUDA's threads a fork may hang
    alone = extract(backbone, dataset, [GAP, RES5], tmp_path / "a", CPU)
    for workers in (1, 3):
        reader = Reader(torch.device("cpu"), workers, batch_size=5)
        helped = extract(backbone, dataset, [GAP, RES5], tmp_path / str(workers), reader)
        for feature in (GAP, RES5):
            np.testing.assert_array_equal(alone.rows[feature], helped.rows[feature])


def test_second_run_computes_nothing(backbone, dataset, tmp_path, reads):
    first = extract(backbone, dataset, [GAP], tmp_path / "cache", CPU)
    reads.clear()
    second = extract(backbone, dataset, [GAP], tmp_path / "cache", CPU)
    assert (second.computed, reads) == (0, [])
    np.testing.assert_array_equal(first.rows[GAP], second.rows[GAP])
    third = extract(backbone, dataset, [GAP, RES5], tmp_path / "cache", CPU)  # only the new one is computed
    assert third.computed == 12 and len(files_below(tmp_path / "cache")) == 4


@pytest.mark.parametrize("what", ["checkpoint", "image", "size"])
def test_whatever_moves_the_numbers_makes_other_features(backbone, dataset, tmp_path, what):
    before = extract(backbone, dataset, [GAP], tmp_path / "cache", CPU).rows[GAP]
    feature = GAP
    if what == "checkpoint":
        backbone = load_backbone("random:resnet18:1")
    elif what == "size":
        feature = Feature(Transform("center", 32, 32))
    else:
        path = dataset.root / dataset.paths[3]
        Image.new("RGB", (80, 64), "white").save(path)
    after = extract(backbone, dataset, [feature], tmp_path / "cache", CPU)
    assert after.computed == 12
    changed = np.abs(after.rows[feature] - before).max(axis=1) > 1e-3
    assert changed.tolist() == ([i == 3 for i in range(12)] if what == "image" else [True] * 12)


@pytest.mark.parametrize(
    "damage", ["flipped bit", "truncated", "no array", "no manifest", "manifest of another", "half json"]
)
def test_damage_is_noticed_and_repaired(backbone, dataset, tmp_path, capsys, damage):
    cache = tmp_path / "cache"
    good = np.array(extract(backbone, dataset, [GAP], cache, CPU).rows[GAP])
    (array,), (manifest,) = cache.glob("*.npy"), cache.glob("*.json")
    content = array.read_bytes()
    if damage == "flipped bit":
        array.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif damage == "truncated":
        array.write_bytes(content[:-100])
    elif damage == "no array":
        array.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "half json":
        manifest.write_text(manifest.read_text()[:50])
    else:
        other = json.loads(manifest.read_text())
        other["key"]["weights"] = "0" * 64
        manifest.write_text(json.dumps(other))
    again = extract(backbone, dataset, [GAP], cache, CPU)
    assert again.computed == 12
    np.testing.assert_array_equal(again.rows[GAP], good)
    assert f"note: {array}" in capsys.readouterr().err
    assert extract(backbone, dataset, [GAP], cache, CPU).computed == 0


def interrupt_at(monkeypatch, path):
    """Ctrl-C while this image is read."""
    read = reading_module.read_image

    def stop(file):
        if str(file).endswith(path):
            raise KeyboardInterrupt
        return read(file)

    with monkeypatch.context() as patched:
        patched.setattr(reading_module, "read_image", stop)
        yield


def test_extraction_resumes_after_an_interruption(backbone, dataset, tmp_path, monkeypatch, reads):
    """Stopped in the second batch of five: the first is kept, and the whole equals an undisturbed run bit for bit."""
    whole = extract(backbone, dataset, [GAP, RES5], tmp_path / "whole", CPU)
    stopped = contextmanager(interrupt_at)(monkeypatch, dataset.paths[7])
    with stopped, pytest.raises(KeyboardInterrupt):
        extract(backbone, dataset, [GAP, RES5], tmp_path / "cache", CPU)
    assert not list((tmp_path / "cache").glob("*.npy")) and len(list((tmp_path / "cache").glob("*.npy.part"))) == 2
    reads.clear()
    done = extract(backbone, dataset, [GAP, RES5], tmp_path / "cache", CPU)
    assert done.computed == len(reads) == 7
    for feature in (GAP, RES5):
        np.testing.assert_array_equal(done.rows[feature], whole.rows[feature])
    assert len(files_below(tmp_path / "cache")) == 4  # two arrays, two manifests, nothing half


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "no note", "another selection"])
def test_half_an_array_that_is_not_what_it_says_starts_anew(backbone, dataset, tmp_path, monkeypatch, damage):
    whole = extract(backbone, dataset, [GAP, RES5], tmp_path / "whole", CPU)
    stopped = contextmanager(interrupt_at)(monkeypatch, dataset.paths[7])
    with stopped, pytest.raises(KeyboardInterrupt):
        extract(backbone, dataset, [GAP], tmp_path / "cache", CPU)
    (part,), (note,) = (tmp_path / "cache").glob("*.npy.part"), (tmp_path / "cache").glob("*.part.json")
    content = part.read_bytes()
    if damage == "flipped bit":
        part.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "cut":
        part.write_bytes(content[:-9])
    elif damage == "no note":
        note.unlink()
    wanted = [GAP, RES5] if damage == "another selection" else [GAP]  # RES5 has no rows yet: one pass feeds both
    done = extract(backbone, dataset, wanted, tmp_path / "cache", CPU)
    assert done.computed == 12
    for feature in wanted:
        np.testing.assert_array_equal(done.rows[feature], whole.rows[feature])


def test_arrays_are_memory_mapped_and_their_size_is_said_beforehand(backbone, dataset, tmp_path, capsys):
    done = extract(backbone, dataset, [GAP, RES5], tmp_path / "cache", CPU)
    assert all(isinstance(rows, np.memmap) for rows in done.rows.values())
    said = capsys.readouterr().out
    assert "12 rows of center32-resize36-gap 512, squash64-resize72-res5 2048: 0 MiB" in said and "GiB free" in said


def test_a_full_disk_is_an_error_before_any_work(backbone, dataset, tmp_path, monkeypatch, reads):
    monkeypatch.setattr(features_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="--cache-dir"):
        extract(backbone, dataset, [GAP], tmp_path / "cache", CPU)
    assert reads == [] and files_below(tmp_path / "cache") == []


def test_weights_that_move_are_found_out(backbone, dataset, tmp_path, monkeypatch):
    """A forward pass that touched a BatchNorm statistic would be caught, and nothing of it kept."""
    forward = features_module.stage_features

    def training_mode(model, images):
        return forward(model.train(), images)

    monkeypatch.setattr(features_module, "stage_features", training_mode)
    with pytest.raises(RuntimeError, match="weights changed"):
        extract(backbone, dataset, [RES5], tmp_path / "cache", CPU)
    assert files_below(tmp_path / "cache") == []


def test_hash_sees_every_tensor(backbone):
    model = backbone.module()
    before = weights_sha256(model)
    model.layer4[1].bn2.running_var[5] += 1e-6
    moved = weights_sha256(model)
    model.bn1.num_batches_tracked += 1
    assert len({before, moved, weights_sha256(model), weights_sha256(backbone.module())}) == 3


def test_broken_weights_are_an_error(dataset, tmp_path, backbone):
    state = dict(backbone.state)
    state["conv1.weight"] = torch.full_like(state["conv1.weight"], float("nan"))
    broken = type(backbone)("resnet18", "imagenet", state, "random", "broken", "0")
    with pytest.raises(UserError, match="broken: its features hold NaN"):
        extract(broken, dataset, [GAP], tmp_path / "cache", CPU)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        MemoryError(),
    ],
    ids=["CUDA", "cuDNN", "cuDNN without a workspace", "Python"],
)
def test_a_full_memory_says_what_to_change(backbone, dataset, tmp_path, monkeypatch, error):
    def full(model, images):
        raise error

    monkeypatch.setattr(features_module, "stage_features", full)
    with pytest.raises(UserError, match="out of memory; choose a smaller --batch-size"):
        extract(backbone, dataset, [GAP], tmp_path / "cache", CPU)


def test_another_error_stays_what_it_is(backbone, dataset, tmp_path, monkeypatch):
    def broken(path):
        raise RuntimeError("planted")

    monkeypatch.setattr(reading_module, "read_image", broken)
    for workers in (0, 2):
        with pytest.raises(RuntimeError, match="planted"):
            extract(backbone, dataset, [GAP], tmp_path / "cache", Reader(torch.device("cpu"), workers, batch_size=5))
    assert files_below(tmp_path / "cache") == []


# unreadable images


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_an_error_by_default(backbone, dataset, tmp_path, workers):
    (dataset.root / dataset.paths[6]).write_bytes(b"not an image")
    with pytest.raises(UserError) as caught:
        extract(backbone, dataset, [GAP], tmp_path / "cache", Reader(torch.device("cpu"), workers, batch_size=5))
    assert dataset.paths[6] in str(caught.value) and "--max-bad-share" in str(caught.value)
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_unreadable_images_are_skipped_counted_and_named(backbone, dataset, tmp_path):
    good = extract(backbone, dataset, [GAP], tmp_path / "good", CPU).rows[GAP]
    bad = [0, 1, 2, 3, 4, 8]  # a whole first batch of five, and one more
    for i in bad:
        (dataset.root / dataset.paths[i]).write_bytes(b"")
    lenient = Reader(torch.device("cpu"), workers=0, batch_size=5, max_bad_share=0.5)
    for computed in (6, 0):  # extracted, then from the cache: the same
        done = extract(backbone, dataset, [GAP], tmp_path / "cache", lenient)
        assert done.kept.tolist() == [5, 6, 7, 9, 10, 11] and done.computed == computed
        assert set(done.unreadable) == {dataset.paths[i] for i in bad}
        np.testing.assert_allclose(done.rows[GAP], good[done.kept], rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="6 of 12"):  # the cache does not get round a stricter share
        extract(backbone, dataset, [GAP], tmp_path / "cache", Reader(torch.device("cpu"), 0, 5, max_bad_share=0.49))


def test_an_image_that_can_be_read_again_is_computed(backbone, dataset, tmp_path, capsys):
    """A passing fault (a file server, a permission) leaves size and time as they were; the cache looks again."""
    path = dataset.root / dataset.paths[2]
    content, stat = path.read_bytes(), path.stat()
    path.write_bytes(b"\0" * len(content))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    lenient = Reader(torch.device("cpu"), workers=0, batch_size=5, max_bad_share=0.5)
    assert len(extract(backbone, dataset, [GAP], tmp_path / "cache", lenient).kept) == 11
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    done = extract(backbone, dataset, [GAP], tmp_path / "cache", lenient)
    assert (len(done.kept), done.computed) == (12, 12)
    assert "can be read now" in capsys.readouterr().err


def test_a_dangling_link_is_an_unreadable_image(backbone, dataset, tmp_path):
    path = dataset.root / dataset.paths[4]
    path.unlink()
    path.symlink_to(tmp_path / "gone.png")
    lenient = Reader(torch.device("cpu"), workers=0, batch_size=5, max_bad_share=0.1)
    assert list(extract(backbone, dataset, [GAP], tmp_path / "cache", lenient).unreadable) == [dataset.paths[4]]


def test_nothing_readable_is_an_error(backbone, dataset, tmp_path):
    for path in dataset.paths:
        (dataset.root / path).write_bytes(b"")
    reader = Reader(torch.device("cpu"), workers=0, batch_size=5, max_bad_share=1.0)
    with pytest.raises(UserError, match="none of the 12"):
        extract(backbone, dataset, [GAP], tmp_path / "cache", reader)


def test_progress_shows_rate_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with progress(10, "features", "images") as bar:
        bar.update(4)
        bar.refresh()
    shown = capsys.readouterr().err
    assert "features:  40%" in shown and "4/10" in shown and "images/s" in shown
