"""Scores: subsets of VOC, undefined values, one level of names."""

from __future__ import annotations

import json

import pytest
import torch

import detection  # noqa: F401  (patches before detectron2)

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_pascal_voc
from detectron2.structures import Boxes, Instances

from detection.evaluation import PREDICTIONS, build_evaluator
from detection.report import flat_scores
from tests.detection_helpers import make_voc


@pytest.fixture
def voc(tmp_path):
    name = f"voc_{tmp_path.name}"
    register_pascal_voc(name, str(make_voc(tmp_path) / "VOC2007"), "test", 2007)
    MetadataCatalog.get(name).evaluator_type = "pascal_voc"
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def evaluate(name, folder, keep):
    """detectron2's evaluation of the ground truth itself, of the images for which `keep(index)`."""
    evaluator = build_evaluator(name, folder)
    evaluator.reset()
    for index, entry in enumerate(DatasetCatalog.get(name)):
        truth = entry["annotations"] if keep(index) else []
        found = Instances((entry["height"], entry["width"]))
        found.pred_boxes = Boxes(torch.tensor([box["bbox"] for box in truth]).reshape(-1, 4))
        found.scores = torch.ones(len(truth))
        found.pred_classes = torch.tensor([box["category_id"] for box in truth], dtype=torch.long)
        evaluator.process([entry], [{"instances": found}])
    return evaluator.evaluate()["bbox"]


def test_a_subset_of_voc_has_two_means(voc, tmp_path):
    scores = evaluate(voc, tmp_path / "out", keep=lambda index: True)
    assert scores["AP50"] == pytest.approx(100 * 2 / 20)  # two of twenty classes are in the test list
    assert scores["AP50_present"] == pytest.approx(100)
    kept = json.loads((tmp_path / "out" / PREDICTIONS).read_text())
    assert len(kept) == 10
    assert set(kept[0]) >= {"image_id", "category_id", "bbox", "score"}


def test_no_detections_at_all_score_zero(voc, tmp_path):
    scores = evaluate(voc, tmp_path / "out", keep=lambda index: False)
    assert set(scores.values()) == {0.0}
    assert json.loads((tmp_path / "out" / PREDICTIONS).read_text()) == []


def test_scores_are_flat_and_undefined_ones_named():
    results = {"bbox": {"AP": 40.0, "APs": float("nan"), "AP-person": 50.0}, "segm": {"AP": 35.0}}
    assert flat_scores(results) == ({"AP": 40.0, "segm/AP": 35.0}, ["APs"])
    two = {"voc_2007_test": {"bbox": {"AP": 1.0}}, "voc_2012_val": {"bbox": {"AP": float("nan")}}}
    assert flat_scores(two) == ({"voc_2007_test/AP": 1.0}, ["voc_2012_val/AP"])
