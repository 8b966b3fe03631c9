"""Broken, unusual and hostile data: an image is read, or counted and named; a wrong list is reported in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from adco.config.schema import ViewConfig
from adco.data import native
from adco.data.datasets.annotations import check_coco_content, places_list, read_coco, voc_objects
from adco.data.datasets.check import broken
from adco.data.images import BadImages, UnreadableImage, decode, index_folder, read_image
from adco.data.in_memory import in_memory
from adco.data.loader import ViewDataset, batches, requests
from adco.utils.errors import UserError
from adco.weights.backbone import load_backbone
from tests.faults import hostile
from tests.faults.table import fault
from tests.transfer.data import COLOURS, make_folder
from transfer.classifier.dataset import Labelled, Request, TrainingPictures
from transfer.classifier.protocols import PLACES205
from transfer.features.extract import Feature, ImageList, Reader, extract
from transfer.features.transforms import Transform
from transfer.places205 import read_places
from transfer.voc import read_voc

CPU = torch.device("cpu")
VIEWS = (ViewConfig(px=24), ViewConfig(px=16, scale=[0.05, 0.3]))
ODD = fault(
    "odd-pictures", "Data",
    "images: CMYK, 16-bit, animated, 1x1, 9,000x1, another format than the suffix says, names that are not UTF-8",
    "read by every reader",
)  # fmt: skip
BROKEN = fault(
    "broken-pictures", "Data",
    "images: empty, truncated, damaged, not an image, a program (EPS), 20,000 x 20,000, text bomb, pipe, device, "
    "dangling and circular link, no permission, a terabyte",
    "every reader counts and names them with the reason, and never waits for one",
)  # fmt: skip
BOUND = fault(
    "giant-pictures", "Data", "images of 20,000 x 20,000 as JPEG and PNG, a 100 MB comment in a PNG",
    "refused within 64 MiB, by Pillow and by the C kernel",
)  # fmt: skip
LABELS = fault("five-percent", "Data", "5% of a training set corrupt", "the other images keep their labels")
LISTS = fault(
    "annotations", "Data",
    "COCO: missing images, boxes outside, without area or NaN, duplicate ids, false run lengths, no annotations, paths "
    "that lead out of the folder; VOC: missing fields, entity bombs, external entities; Places205: invalid or "
    "contradictory labels",
    "one line that names the file and the position; what detectron2 leaves out is counted",
)  # fmt: skip


def read_by(reader: str, folder: Path, tmp_path: Path) -> tuple[int, dict[str, str]]:
    """The number of images, and path -> reason of those that a reader cannot read."""
    index = index_folder(folder)
    if reader in ("native", "reference", "memory"):
        source = in_memory(index, 2) if reader == "memory" else index
        dataset = ViewDataset(source, VIEWS, 0, len(index), "native" if reader == "memory" else reader)
        made = list(batches(dataset, requests(0, len(index), len(index), 0, 1), 0, CPU))
        assert [pixels.shape[0] for pixels in made[0].pixels] == [len(index), len(index)]
        return len(index), made[0].bad
    if reader == "features":
        images = ImageList(index.root, index.paths, "x")
        feature, plan = Feature(Transform("center", 32, 36)), Reader(CPU, 0, 16, 1.0)
        done = extract(load_backbone("random:resnet18"), images, [feature], tmp_path / "cache", plan)
        assert len(done.rows[feature]) == len(done.kept) == len(index) - len(done.unreadable)
        return len(index), done.unreadable
    lines = broken((index.root / path for path in index.paths), None, present=True)
    reported = (line.removeprefix(f"{index.root}/").partition(": cannot be decoded ") for line in lines)
    return len(index), {name: reason for name, _, reason in reported}


READERS = ("native", "reference", "memory", "features", "check_data")


@ODD
@pytest.mark.parametrize("reader", READERS)
def test_unusual_images_are_read(tmp_path, reader, seen):
    folder = hostile.write_images(tmp_path / "x" / "class", hostile.SOUND).parent
    (folder / "class" / "again").symlink_to(folder)  # a loop of folders
    assert read_by(reader, folder, tmp_path) == (len(hostile.SOUND), {})
    seen.tries = len(hostile.SOUND)


@BROKEN
@pytest.mark.parametrize("reader", READERS)
def test_broken_images_are_named_with_the_reason(tmp_path, reader, seen):
    folder = hostile.write_images(tmp_path / "x", {"sound.jpg": hostile.SOUND["plain.jpg"]})
    reasons = hostile.write_broken(folder)
    with hostile.without_root():
        count, bad = read_by(reader, folder, tmp_path)
    assert count == len(reasons) + 1 and bad.keys() == reasons.keys()
    if reader != "memory":  # its reason is only that the image could not be decoded
        assert all(word in bad[name] for name, word in reasons.items()), bad
    assert not any("\n" in reason for reason in bad.values())
    seen.tries = len(reasons)


@BROKEN
def test_a_folder_without_permission_is_an_error_not_an_empty_class(tmp_path):
    hostile.write_images(tmp_path / "x" / "cat", {"a.jpg": hostile.SOUND["plain.jpg"]})
    locked = hostile.write_images(tmp_path / "x" / "dog", {"b.jpg": hostile.SOUND["plain.jpg"]})
    locked.chmod(0)
    try:
        with hostile.without_root(), pytest.raises(UserError, match="dog: .*Permission denied"):
            index_folder(tmp_path / "x")
    finally:
        locked.chmod(0o700)


@ODD
def test_sixteen_bits_become_their_upper_eight():
    levels = (np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64)
    for format in ("PNG", "TIFF"):
        image = decode(hostile.encoded(hostile.Image.fromarray(levels), format), "x")
        assert np.array_equal(np.asarray(image), np.repeat((levels >> 8)[:, :, None], 3, axis=2))


@ODD
def test_of_an_animation_the_first_frame_is_read():
    for format in ("PNG", "WEBP"):
        first, *rest = hostile.frames()
        content = hostile.encoded(first, format, save_all=True, append_images=rest, lossless=True)
        assert np.array_equal(np.asarray(decode(content, "x")), np.asarray(first))


@BOUND
@pytest.mark.parametrize("name", ["huge.jpg", "huge.png", "text-bomb.png"])
def test_huge_images_are_refused_in_little_memory(name, seen):
    content = hostile.BROKEN[name][0]()

    def by_pillow():
        with pytest.raises(UnreadableImage):
            decode(content, name)

    def by_the_kernel():
        out = [np.empty((1, view.px, view.px, 3), np.uint8) for view in VIEWS]
        draws = ViewDataset(None, VIEWS, 0, 0).draws(next(requests(0, 1, 1, 0, 1)))
        assert not native.Canvas([view.scale for view in VIEWS], draws, out, True).jpeg(0, content)

    works = [by_pillow, *([by_the_kernel] if native.fast_jpeg() else [])]
    peaks = [hostile.peak_mib(work) for work in works]
    assert max(peaks) < 64
    seen.tries, seen.figures["peak MiB"] = len(works), max(peaks)


@BOUND
def test_the_largest_image_that_is_read_needs_the_memory_of_its_pixels(tmp_path, seen):
    side = 9450  # 89.3 million pixels
    path = tmp_path / "large.png"
    hostile.Image.new("1", (side, side)).save(path)
    peak = hostile.peak_mib(lambda: read_image(path))
    assert 200 < peak < 700  # 1 byte a pixel, then 4: how Pillow keeps RGB
    seen.figures["peak MiB of 89 megapixels that are read"] = peak


@LABELS
def test_with_five_percent_corrupt_the_others_keep_their_labels(tmp_path, seen):
    root = make_folder(tmp_path / "x", train=20, val=2) / "train"
    for path in (root / "bird" / "3.png", root / "cat" / "7.png", root / "dog" / "19.png"):
        path.write_bytes(path.read_bytes()[:100])
    index = index_folder(root)
    data = Labelled(ImageList(root, index.paths, "train"), np.array(index.labels), index.classes)
    recipe = next(iter(PLACES205.values()))
    _, crops, labels, bad = TrainingPictures(data, recipe, 48, 0)[Request(0, np.arange(len(index)))]
    assert sorted(bad) == ["bird/3.png", "cat/7.png", "dog/19.png"]
    colours = np.array([COLOURS[name] for name in index.classes])
    pixels = crops.permute(0, 2, 3, 1).flatten(1, 2).numpy().astype(int)
    nearest = np.abs(pixels[:, :, None] - colours).sum(axis=3).min(axis=1).argmin(axis=1)
    clear = (
        np.abs(pixels[:, :, None] - colours).sum(axis=3).min(axis=1).min(axis=1) < 60
    )  # the drawn shape is in the crop
    assert clear.sum() > 40 and np.array_equal(nearest[clear], labels.numpy()[clear])
    with pytest.raises(UserError, match="bird/3.png: cannot be read .*; 3 of 60 images are unreadable"):
        BadImages(root, len(index), 0.04, "--max-bad-share").update(dict(sorted(bad.items())))
    seen.tries, seen.figures["corrupt of 60"] = len(index), len(bad)


@LABELS
def test_a_training_set_of_which_nothing_can_be_read_ends(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    data = Labelled(ImageList(tmp_path, ("a.jpg",), "train"), np.array([0]), ("x",))
    with pytest.raises(UserError, match="none of the 1 train images"):
        TrainingPictures(data, next(iter(PLACES205.values())), 48, 0)[Request(0, np.arange(1))]


# Annotations


def coco(**changes) -> dict:
    """A valid COCO file with one image, one category and an annotation with the changes."""
    box = {"id": 5, "image_id": 1, "category_id": 2, "bbox": [1, 1, 5, 5], "iscrowd": 0}
    box["segmentation"] = [[1, 1, 6, 1, 6, 6]]
    image = {"id": 1, "file_name": "a.jpg", "width": 10, "height": 8}
    return {"images": [image], "categories": [{"id": 2, "name": "cat"}], "annotations": [box | changes]}


def crowd(**changes) -> dict:
    return coco(iscrowd=1, segmentation={"size": [8, 10], "counts": [20, 30, 30]} | changes)


COCO_FAULTS = {
    "missing image": (coco(image_id=7), "annotations of images that it does not list: 1, the first is 5"),
    "missing category": (coco(category_id=7), "annotations of categories that it does not list"),
    "NaN": (coco(bbox=[1, 1, float("nan"), 5]), "boxes that are not four finite numbers"),
    "infinite": (coco(bbox=[1, 1, float("inf"), 5]), "boxes that are not four finite numbers"),
    "three numbers": (coco(bbox=[1, 1, 5]), "boxes that are not four finite numbers"),
    "text": (coco(bbox="1 1 5 5"), "boxes that are not four finite numbers"),
    "no box": (coco(bbox=None), "boxes that are not four finite numbers"),
    "NaN polygon": (coco(segmentation=[[1, 1, float("nan"), 5, 6, 6]]), "segmentations"),
    "runs too short": (crowd(counts=[20, 30]), "run-length code"),
    "runs too long": (crowd(counts=[20, 30, 10**9]), "run-length code"),
    "negative runs": (crowd(counts=[100, -50, 30]), "run-length code"),
    "another size": (crowd(size=[80, 100]), "run-length code"),
    "false packed runs": (crowd(counts="PPPPPPPPP"), "run-length code"),
    "packed runs of other characters": (crowd(counts="\x00é"), "run-length code"),
    "doubled annotation": (coco() | {"annotations": coco()["annotations"] * 2}, "annotations whose id is there twice"),
    "doubled image": (coco() | {"images": coco()["images"] * 2}, "images whose id is there twice"),
    "no id": (coco(id=None), "annotations without an id"),
    "no size": (coco() | {"images": [{"id": 1, "file_name": "a.jpg"}]}, "images without a width and height"),
    "path out": (
        coco() | {"images": [coco()["images"][0] | {"file_name": "../../etc/passwd"}]}, "file_name below their folder",
    ),
}  # fmt: skip


@LISTS
@pytest.mark.parametrize("case", COCO_FAULTS)
def test_a_wrong_coco_file_is_reported(tmp_path, case):
    content, words = COCO_FAULTS[case]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    assert any(words in line for line in check_coco_content(read_coco(path))[0])


@LISTS
@pytest.mark.parametrize("box", [[3, 3, 0, 5], [3, 3, 5, 0], [30, 3, 5, 5], [-9, 3, 5, 5], [3, 3, -2, 5]])
def test_boxes_without_area_or_outside_are_counted_not_refused(box):
    assert check_coco_content(coco(bbox=box)) == (
        [],
        ["boxes without area or outside their image, left out: 1, the first is 5"],
    )


@LISTS
def test_valid_coco_files_are_accepted():
    packed = {"size": [8, 10], "counts": "d0n0n0"}  # 20, 30, 30 as pycocotools packs them
    for content in (coco(), crowd(), coco(iscrowd=1, segmentation=packed), coco(bbox=[8, 6, 5, 5])):
        assert check_coco_content(content) == ([], [])


NO_COCO = ["", "{", "[]", "3", '{"images": 3}', '{"images": [3], "annotations": [], "categories": []}', "[" * 100_000]
NO_COCO += ['{"images": ' + "9" * 5000 + "}", "\xff"]


@LISTS
@pytest.mark.parametrize("text", NO_COCO, ids=range(len(NO_COCO)))
def test_what_is_no_coco_file_is_one_line(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text.encode("latin1"))
    with pytest.raises(UserError, match="x.json: not a COCO instances file") as caught:
        read_coco(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


@LISTS
def test_coco_without_annotations_or_with_nan_stops_before_training(tmp_path):
    pytest.importorskip("detectron2", reason="detectron2 is not installed")
    from detection.datasets import inspect_coco

    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"x")
    for content, words in (
        (coco() | {"annotations": []}, "no annotations"),
        (coco(bbox=[1, 1, float("nan"), 5]), "finite"),
    ):
        (tmp_path / "x.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=f"x.json: .*{words}"):
            inspect_coco(tmp_path / "x.json", tmp_path / "images")


OBJECT = (
    "<object><name>cat</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
)
LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha"}">' for i in range(10))
VOC_FAULTS = {
    "no field": ("<a>" + OBJECT.replace("<pose>Left</pose>", "") + "</a>", "no <pose>"),
    "no box": ("<a>" + OBJECT.split("<bndbox>")[0] + "</object></a>", "no <bndbox>"),
    "no corner": ("<a>" + OBJECT.replace("<ymax>9</ymax>", "") + "</a>", "no number in <ymax>"),
    "no number": ("<a>" + OBJECT.replace("<ymax>9", "<ymax>nine") + "</a>", "no number in <ymax>"),
    "NaN": ("<a>" + OBJECT.replace("<ymax>9", "<ymax>nan") + "</a>", "no number in <ymax>"),
    "infinite": ("<a>" + OBJECT.replace("<ymax>9", "<ymax>1e999") + "</a>", "no number in <ymax>"),
    "cut": ("<a><object>", "not a VOC annotation"),
    "billion laughs": (f"<!DOCTYPE a [{LAUGHS}]><a>&l9;</a>", "declares a document type"),
    "external entity": ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><a>&x;</a>', "declares a document type"),
    "external type": ('<!DOCTYPE a SYSTEM "http://127.0.0.1:9/x.dtd"><a/>', "declares a document type"),
    "unknown encoding": ('<?xml version="1.0" encoding="rot13"?><a/>', "not a VOC annotation"),
}


@LISTS
@pytest.mark.parametrize("case", VOC_FAULTS)
def test_a_wrong_voc_annotation_is_reported(tmp_path, case):
    content, words = VOC_FAULTS[case]
    path = tmp_path / "000001.xml"
    for text in (content.encode(), *([content.encode("utf-16")] if "encoding" not in content else [])):
        path.write_bytes(text)
        with pytest.raises(UserError, match=f"000001.xml: .*{words}") as caught:
            voc_objects(path)
        assert "\n" not in str(caught.value)


@LISTS
def test_a_voc_box_without_area_is_counted(tmp_path):
    (tmp_path / "1.xml").write_text("<a>" + OBJECT + OBJECT.replace("<xmax>9", "<xmax>1") + "</a>")
    assert [item.empty for item in voc_objects(tmp_path / "1.xml")] == [False, True]


NO_PLACES = [f"a/b.jpg {label}" for label in ("", -1, 205, "²", "٣", "1.0", "nan", "0x1", "9" * 5000)]
NO_PLACES += ["../b.jpg 1", "/etc/passwd 1", "7", "a/good.jpg 4", "a/b\0.jpg 1"]


@LISTS
@pytest.mark.parametrize("line", NO_PLACES, ids=range(len(NO_PLACES)))
def test_an_invalid_places_label_is_named_with_its_line(line):
    with pytest.raises(UserError, match="list.csv:3: "):
        places_list(Path("list.csv"), f"a/good.jpg 3\n\n{line}\n".encode())


@LISTS
def test_a_places_label_that_is_not_in_training_is_an_error(tmp_path):
    lists, images = tmp_path / "trainvalsplit_places205", tmp_path / "data/vision/torralba/deeplearning/images256"
    lists.mkdir(), images.mkdir(parents=True)
    (images / "a.jpg").write_bytes(b"x")
    (lists / "train_places205.csv").write_text("a.jpg 0\n")
    (lists / "val_places205.csv").write_text("a.jpg 1\n")
    with pytest.raises(UserError, match="label 1 is in val_places205.csv, but not in train"):
        read_places(tmp_path)


@LISTS
@pytest.mark.parametrize("line", ["../../a 1", "/etc/passwd 1", "a 2", "a 1 1", "a"])
def test_a_voc_list_names_images_of_its_folder_with_labels(tmp_path, line):
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "aeroplane_trainval.txt").write_bytes(os.fsencode(line) + b"\n")
    with pytest.raises(UserError, match="aeroplane_trainval.txt:1: expected"):
        read_voc(tmp_path)
