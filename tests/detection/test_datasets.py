"""Datasets are looked at before training: counted, fingerprinted, and whatever is wrong is named."""

from __future__ import annotations

import json

import pytest

import detection  # noqa: F401
from adco.utils.errors import UserError
from detection.datasets import inspect_coco, inspect_dataset, inspect_voc
from tests.detection.helpers import make_coco, make_voc, write_annotation

NAMES = ("cat", "dog", "bus")


def facts(root, split="test"):
    return inspect_voc(root / "VOC2007", split, NAMES)


def test_voc_facts(tmp_path):
    voc = facts(make_voc(tmp_path, test=5))
    assert (voc["images"], voc["boxes"], voc["classes_with_boxes"]) == (5, 10, 2)


def test_the_fingerprint_follows_list_annotations_and_images(tmp_path):
    root = make_voc(tmp_path)
    before = facts(root)["fingerprint"]
    assert facts(root)["fingerprint"] == before
    write_annotation(root / "VOC2007/Annotations/400000.xml", [("cat", (1, 1, 20, 20))])
    changed = facts(root)["fingerprint"]
    with (root / "VOC2007/JPEGImages/400001.jpg").open("ab") as file:
        file.write(b"0")
    assert len({before, changed, facts(root)["fingerprint"]}) == 3


def test_difficult_boxes_are_boxes_but_make_no_class_present(tmp_path):
    root = make_voc(tmp_path)
    for path in (root / "VOC2007/Annotations").glob("4*.xml"):
        path.write_text(path.read_text().replace("<difficult>0", "<difficult>1"))
    assert (facts(root)["boxes"], facts(root)["classes_with_boxes"]) == (10, 0)


@pytest.mark.parametrize("gone", ["JPEGImages/400002.jpg", "Annotations/400002.xml", "ImageSets/Main/test.txt"])
def test_a_missing_voc_file_is_named(tmp_path, gone):
    root = make_voc(tmp_path)
    (root / "VOC2007" / gone).unlink()
    with pytest.raises(UserError, match=gone.replace(".", r"\.")):
        facts(root)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("<annotation>", "not a VOC annotation"),
        ("<annotation><object><name>cat</name></object></annotation>", "no <pose>"),
        (None, "class 'unicorn'"),
    ],
)
def test_a_bad_annotation_is_named(tmp_path, content, complaint):
    root = make_voc(tmp_path)
    path = root / "VOC2007/Annotations/400003.xml"
    write_annotation(path, [("unicorn", (1, 1, 9, 9))])
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match=f"400003.xml.*{complaint}"):
        facts(root)


def test_a_list_that_detectron2_cannot_read_is_refused(tmp_path):
    root = make_voc(tmp_path)
    (root / "VOC2007/ImageSets/Main/test.txt").write_text("400000\n")
    with pytest.raises(UserError, match="two or more"):
        facts(root)


def test_coco_facts_and_missing_files(tmp_path):
    root = make_coco(tmp_path) / "coco"
    annotations, images = root / "annotations/instances_val2017.json", root / "val2017"
    coco = inspect_coco(annotations, images)
    assert (coco["images"], coco["boxes"]) == (5, 10)
    (images / "000000000003.jpg").unlink()
    with pytest.raises(UserError, match="000000000003.jpg"):
        inspect_coco(annotations, images)
    with pytest.raises(UserError, match="no such image folder"):
        inspect_coco(annotations, root / "val2099")
    with pytest.raises(UserError, match="DETECTRON2_DATASETS"):
        inspect_coco(root / "absent.json", images)
    annotations.write_text(json.dumps({"images": []}))
    with pytest.raises(UserError, match="not a COCO instances file"):
        inspect_coco(annotations, images)


@pytest.mark.parametrize("name", ["voc_2099_test", "cityscapes_fine_instance_seg_val"])
def test_datasets_without_a_protocol_are_refused(name):
    with pytest.raises(UserError, match=name):
        inspect_dataset(name)
