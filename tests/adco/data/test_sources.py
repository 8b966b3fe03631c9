"""Every source gives the same kind of thing: an order, images by number, one clear line for what is not there."""

from __future__ import annotations

import http.server
import io
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adco.config.schema import ViewConfig
from adco.data import images, index_cache, shards
from adco.data.images import UnreadableImage, index_folder
from adco.data.in_memory import in_memory
from adco.data.loader import ViewDataset, batches, requests
from adco.data.sources import open_images
from adco.utils.errors import UserError
from adco.utils.paths import cache_folder
from benchmarks.speed.photographs import jpeg, photograph, write_photographs
from tests import ROOT

LONG_AGO = 1_600_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ADCO_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path):
    root = write_photographs(tmp_path / "train", 12, classes=3, width=40, height=30)
    for place in (root, *root.iterdir()):
        os.utime(place, (LONG_AGO, LONG_AGO))
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def tars(folder, tmp_path):
    """The folder's images in three shards, with labels beside them as webdataset has them."""
    index = index_folder(folder)
    for number in range(3):
        members = {}
        for i in range(4 * number, 4 * number + 4):
            members[index.paths[i]] = index.read(i)
            members[index.paths[i].replace(".jpg", ".cls")] = b"1"
            members[index.paths[i].replace(".jpg", ".mask.png")] = b"another image of the same key"
        write_tar(tmp_path / f"part-{number:03d}.tar", members)
    return str(tmp_path / "part-{000..002}.tar")


def same_images(a, b) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(np.asarray(a.image(i)), np.asarray(b.image(i))) for i in range(len(a))
    )


# folders


def test_a_folders_list_is_taken_from_the_cache_until_a_folder_changes(folder, monkeypatch):
    monkeypatch.setattr(images, "CACHED_FROM", 1)
    first = index_folder(folder)
    monkeypatch.setattr(images, "_scan", lambda root: pytest.fail("looked through again"))
    again = index_folder(folder)
    assert again == first and again.fingerprint == first.fingerprint  # noqa: PT018
    monkeypatch.undo()
    monkeypatch.setenv("ADCO_CACHE", str(cache_folder()))
    (folder / "class1" / "new.jpg").write_bytes(jpeg(photograph(99, 40, 30)))
    changed = index_folder(folder)
    assert len(changed) == 13
    assert changed.fingerprint != first.fingerprint
    shutil.rmtree(folder / "class2")
    assert len(index_folder(folder)) == 9


def test_a_folder_changed_just_now_and_a_small_one_are_not_remembered(folder, cache, monkeypatch):
    index_folder(folder)
    assert not list(cache.rglob("*.npz"))
    monkeypatch.setattr(images, "CACHED_FROM", 1)
    os.utime(folder / "class0")
    index_folder(folder)
    assert not list(cache.rglob("*.npz"))


def test_a_damaged_or_readonly_cache_costs_a_scan_and_nothing_else(folder, cache, monkeypatch):
    monkeypatch.setattr(images, "CACHED_FROM", 1)
    first = index_folder(folder)
    (kept,) = cache.rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    assert index_folder(folder) == first
    monkeypatch.setenv("ADCO_CACHE", "/proc/no-such-place")
    assert index_folder(folder) == first


def test_the_fingerprint_is_of_names_order_and_classes(folder):
    index = index_folder(folder)
    assert index.fingerprint == index_folder(folder).fingerprint
    os.rename(folder / index.paths[0], folder / "class0" / "zz.jpg")
    assert index_folder(folder).fingerprint != index.fingerprint
    (folder / "class0" / "zz.jpg").write_bytes(b"another content")
    assert index_folder(folder).stamp() != index.stamp()


def test_names_of_any_bytes_survive():
    names = ("a b", "ü", os.fsdecode(b"\xff\xfe"), "new\nline")
    assert index_cache.unpack(index_cache.pack(names)) == names
    assert index_cache.unpack(index_cache.pack(())) == ()


# tar shards


def test_shards_hold_the_folders_images_in_any_order(folder, tars, monkeypatch):
    whole, index = index_folder(folder), open_images(tars)
    assert same_images(whole, index)
    assert index.classes == whole.classes
    assert index.labels == whole.labels
    assert index.paths[0] == f"part-000.tar/{whole.paths[0]}"
    monkeypatch.setattr(shards, "_open", lambda shard: pytest.fail("looked through again"))
    assert open_images(tars) == index


def test_batches_from_shards_equal_batches_from_the_folder_and_go_on_anywhere(folder, tars):
    def loaded(index, first, last):
        dataset = ViewDataset(index, [ViewConfig(px=16)], 0, 0)
        return [
            b.to_views(torch.device("cpu"))[0]
            for b in batches(dataset, requests(0, 12, 4, first, last), 2, torch.device("cpu"))
        ]

    whole = loaded(index_folder(folder), 0, 6)
    assert all(torch.equal(a, b) for a, b in zip(whole, loaded(open_images(tars), 0, 6), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], loaded(open_images(tars), 4, 6), strict=True))


def test_a_changed_shard_is_scanned_again_and_a_cut_one_names_its_images(tars, tmp_path):
    before = open_images(tars)
    write_tar(tmp_path / "part-001.tar", {"x/1.jpg": jpeg(photograph(1, 40, 30))})
    after = open_images(tars)
    assert (len(before), len(after)) == (12, 9)
    assert before.fingerprint != after.fingerprint
    with pytest.raises(UnreadableImage, match=r"part-001.tar"):  # the old index, and a shard that shrank meanwhile
        before.read(7)


@pytest.mark.parametrize("name", ["../../etc/x.jpg", "/etc/x.jpg", "a/../../x.jpg"])
def test_members_that_lead_out_of_the_archive_are_refused(tmp_path, name):
    path = write_tar(tmp_path / "bad.tar", {name: b"x"})
    with pytest.raises(UserError, match=r"bad.tar: refused.*leads out"):
        open_images(str(path))


def test_shards_that_are_not_there_or_no_tars_are_named(tmp_path):
    with pytest.raises(UserError, match=r"part-1.tar: no such shard"):
        open_images(str(tmp_path / "part-{1..2}.tar"))
    (tmp_path / "text.tar").write_text("no tar " * 200)
    with pytest.raises(UserError, match=r"text.tar: not a whole, uncompressed tar"):
        open_images(str(tmp_path / "text.tar"))
    whole = write_tar(tmp_path / "half.tar", {"a.jpg": jpeg(photograph(0, 200, 200)), "b.jpg": b"1" * 4000})
    whole.write_bytes(whole.read_bytes()[:9000])
    with pytest.raises(UserError, match=r"half.tar"):
        open_images(str(whole))
    with pytest.raises(UserError, match="no images"):
        open_images(str(write_tar(tmp_path / "empty.tar", {"readme.txt": b"x"})))
    with pytest.raises(UserError, match=r"probe\.root"):
        open_images(str(whole), "val")


def test_patterns_expand():
    assert shards.expand("a-{08..11}.tar") == ("a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar")
    assert len(shards.expand("{0..1}/{000..146}.tar")) == 294
    with pytest.raises(UserError, match="counts down"):
        shards.expand("{3..1}.tar")


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server with HTTP ranges, as object stores have."""

    served: list[str] = []
    ranges = True

    def do_GET(self):
        content = Path(self.translate_path(self.path)).read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        self.served.append(self.headers.get("Range") or "whole")
        if wanted and self.ranges:
            content = content[int(wanted[1]) : int(wanted[2]) + 1]
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    Ranges.served, Ranges.ranges = [], True
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: Ranges(*args, directory=str(tmp_path))
    ) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_shards_behind_a_url_are_the_same_images_by_range_requests(folder, tars, server):
    url = f"{server}/part-{{000..002}}.tar"
    index = open_images(url)
    assert same_images(index_folder(folder), index)
    assert index.fingerprint == open_images(tars).fingerprint
    assert Ranges.served.count("whole") == 3
    assert open_images(url) == index
    assert Ranges.served.count("whole") == 3  # once per shard, ever
    Ranges.ranges = False
    with pytest.raises(UserError, match="no parts of files"):
        index.read(0)
    with pytest.raises(UserError, match="no such shard"):
        open_images(f"{server}/absent.tar")


# in memory


def test_images_in_memory_are_the_images_and_bad_ones_stay_bad(folder):
    (folder / "class1" / "00001.jpg").write_bytes(b"no image")
    (folder / "class1" / "00004.jpg").write_bytes(jpeg(photograph(4, 300, 200))[:-3000])  # a good header alone
    index = index_folder(folder)
    kept = in_memory(index, 2)
    assert (kept.paths, kept.labels, kept.fingerprint) == (index.paths, index.labels, index.fingerprint)
    for i, path in enumerate(index.paths):
        if path in ("class1/00001.jpg", "class1/00004.jpg"):
            with pytest.raises(UnreadableImage):
                kept.read(i)
        else:
            assert np.array_equal(kept.read(i), np.asarray(index.image(i)))


def test_processes_of_one_machine_share_the_memory_and_the_last_one_gives_it_back(folder):
    index = index_folder(folder)
    place = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    if place is None:
        pytest.skip("no /dev/shm on this machine")
    code = (
        "import sys; from adco.data import images, in_memory\n"
        "index = images.index_folder(sys.argv[1])\n"
        "if sys.argv[2] == 'second': in_memory._fill = None\n"
        "kept = in_memory.in_memory(index, 1)\n"
        "print(int(sum(kept.read(i).sum(dtype='int64') for i in range(len(kept)))), flush=True); sys.stdin.readline()"
    )
    start = [sys.executable, "-c", code, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen([*start, "first"], **pipes) as one:
        assert one.stdout
        total = one.stdout.readline()
        with subprocess.Popen([*start, "second"], **pipes) as two:  # cannot fill, so it uses the first one's
            assert two.stdout and two.stdout.readline() == total
            two.communicate("\n")
        left = list(place.glob(f"adco-*{index.stamp()[:24]}*"))
        assert len(left) == 1
        one.communicate("\n")
    assert not left[0].exists()
    assert int(total) == sum(int(np.asarray(index.image(i)).sum()) for i in range(len(index)))


def test_what_does_not_fit_is_refused_in_one_line(folder, monkeypatch):
    monkeypatch.setattr("adco.data.in_memory._free_memory", lambda: 12 * 40 * 30 * 3)
    with pytest.raises(UserError, match=r"data.in_memory: the 12 images .* data.in_memory=false") as error:
        in_memory(index_folder(folder), 1)
    assert "\n" not in str(error.value)


def test_views_from_memory_equal_views_from_files(folder):
    index = index_folder(folder)
    views = []
    for source in (index, in_memory(index, 1)):
        dataset = ViewDataset(source, [ViewConfig(px=16)], 0, 0)
        views += [b.pixels[0] for b in batches(dataset, requests(0, 12, 12, 0, 1), 1, torch.device("cpu"))]
    assert torch.equal(*views)


# torchvision's layouts, and what is nothing


def write_cifar(root: Path, monkeypatch) -> None:
    """torchvision's CIFAR-10 layout with six images a file, and their own checksums."""
    from torchvision import datasets

    base = root / "cifar-10-batches-py"
    base.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {"data": rng.integers(0, 256, (6, 3072), dtype=np.uint8), "labels": [0, 1, 2, 3, 4, 5]}
        (base / name).write_bytes(pickle.dumps(content))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"c{i}" for i in range(10)]}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(datasets.cifar, "check_integrity", lambda *_: True)


def test_cifar_is_read_where_the_user_has_it(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cifar10:"):
        open_images(f"cifar10:{tmp_path}")
    write_cifar(tmp_path, monkeypatch)
    train, val = (open_images(f"cifar10:{tmp_path}", split) for split in ("train", "val"))
    assert (len(train), len(val), train.image(3).size) == (30, 6, (32, 32))
    assert train.labels[:6] == (0, 1, 2, 3, 4, 5)
    dataset = ViewDataset(train, [ViewConfig(px=24)], 0, 0)
    (batch,) = batches(dataset, requests(0, 30, 30, 0, 1), 0, torch.device("cpu"))
    assert not batch.bad
    assert in_memory(train, 1) is train


def test_folders_with_splits_and_imagenette(folder, tmp_path):
    assert open_images(str(tmp_path)) == index_folder(folder)
    assert open_images(str(folder)) == index_folder(folder)  # no train in it: the folder itself
    for name in ("imagenette2-160", "imagenette2"):
        shutil.copytree(folder, tmp_path / name / "train")
        assert open_images(f"imagenette:{tmp_path}").root == tmp_path / name / "train"
    for root, split in ((f"imagenette:{folder}", "train"), (str(folder), "val"), ("", "train"), ("imagenette:", "val")):
        with pytest.raises(UserError):
            open_images(root, split)


def test_the_sample_is_not_drawn_by_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"tools/make_sample.py OUT --seed 0, then set data.root=OUT/imagenet$"):
        open_images("sample")
    write_photographs(tmp_path / "sample", 4, 2, 20, 20)  # a folder of that name is a folder
    assert len(open_images("sample")) == 4


def test_pillow_can_open_what_the_generator_writes(folder):
    assert Image.open(folder / index_folder(folder).paths[0]).size == (40, 30)
