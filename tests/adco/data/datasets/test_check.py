"""Datasets before a long run: counts, what is missing, what is broken; the sample's own layouts are whole."""

from __future__ import annotations

import json
import shutil

import pytest

from adco.data.datasets.check import OFFICIAL, Split, check_folder
from adco.sample import make_sample
from adco.utils.errors import UserError
from tools.check_data import main


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "w"
    make_sample(out, 0, 100, 1, progress=False)
    return out


@pytest.fixture
def copy(world, tmp_path):
    return shutil.copytree(world, tmp_path / "w")


def named(splits):
    return {split.name: split for split in splits}


def test_every_layout_is_found_counted_and_whole(world, capsys):
    splits = named(check_folder(world))
    assert named(check_folder(world / "VOCdevkit")).keys() == {name for name in splits if name.startswith("VOC")}
    listing = (world / "VOCdevkit/VOC2007/ImageSets/Main/test.txt").read_text().split()
    assert splits["VOC2007 test"].images == len(listing)
    annotations = json.loads((world / "coco/annotations/instances_val2017.json").read_text())
    assert splits["COCO val2017"].images == len(annotations["images"])
    assert splits["COCO val2017"].boxes == len(annotations["annotations"])
    assert splits["ImageNet train"].images == len(list((world / "imagenet/train").rglob("*.jpg"))) == 100
    assert splits["Places205 train"].images == 20
    assert not any(split.faults for split in splits.values())
    assert not any(split.official for split in splits.values())
    assert main([str(world)]) == 0
    printed = capsys.readouterr().out
    assert "ImageNet train: 100 of 1281167 images, 20 of 1000 classes   not the official set" in printed


def test_a_subset_is_a_fault_only_when_the_official_set_is_asked_for(world, capsys):
    assert main([str(world / "imagenet")]) == 0
    assert main([str(world / "imagenet"), "--official"]) == 2
    assert "not official: ImageNet train, ImageNet val" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("VOCdevkit/VOC2007/JPEGImages", "no such image"),
        ("VOCdevkit/VOC2007/Annotations", "no such annotation"),
        ("coco/val2017", "no such image"),
        ("places205/data/vision/torralba/deeplearning/images256", "no such image"),
    ],
)
def test_what_is_missing_is_named(copy, capsys, spoil, says):
    gone = next(path for path in sorted((copy / spoil).rglob("*")) if path.is_file())
    gone.unlink()
    assert main([str(copy)]) == 2
    captured = capsys.readouterr()
    assert f"{gone}: {says}" in captured.out
    assert len(captured.err.strip().splitlines()) == 1


def test_an_image_that_cannot_be_decoded_is_named(copy, capsys):
    path = next((copy / "imagenet/val").rglob("*.jpg"))
    path.write_bytes(path.read_bytes()[:300])
    assert main([str(copy / "imagenet"), "--decode", "all"]) == 2
    assert f"{path}: cannot be decoded" in capsys.readouterr().out
    assert main([str(copy / "imagenet"), "--decode", "0"]) == 0
    assert main([str(copy / "imagenet"), "--decode", "some"]) == 2


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("coco/annotations/instances_val2017.json", "{", "not a COCO instances file"),
        ("coco/annotations/instances_val2017.json", '{"images": []}', "not a COCO instances file"),
        (
            "coco/annotations/instances_val2017.json",
            '{"images": [], "annotations": [{"image_id": 3}], "categories": []}',
            "annotations of images that it does not list: 1",
        ),
        ("places205/trainvalsplit_places205/val_places205.csv", "a/b.jpg\n", ":1: expected `PATH LABEL`"),
    ],
)
def test_broken_lists_are_named(copy, path, content, says):
    (copy / path).write_text(content)
    faults = [fault for split in check_folder(copy, 0) for fault in split.faults]
    assert any(str(copy / path) in fault and says in fault for fault in faults), faults


def test_a_class_of_one_split_only_is_named(copy):
    gone = next((copy / "imagenet/val").iterdir())
    shutil.rmtree(gone)
    faults = named(check_folder(copy / "imagenet", 0))["ImageNet train"].faults
    assert faults == [f"{gone}: no such folder, but train has it"]


def test_a_folder_with_nothing_known_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "absent")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
    with pytest.raises(UserError, match="docs/data.md"):
        check_folder(tmp_path)


def test_official_means_every_count():
    images, boxes = OFFICIAL["VOC2007 test"]
    assert Split("VOC2007 test", images, boxes, 20).official
    assert not Split("VOC2007 test", images, boxes - 1, 20).official
    assert not Split("VOC2007 test", images, boxes, 19).official
    for year in ("VOC2007", "VOC2012"):  # the official splits add up
        parts = [OFFICIAL[f"{year} {name}"] for name in ("train", "val", "trainval")]
        assert [a + b for a, b in zip(parts[0], parts[1], strict=True)] == list(parts[2])
