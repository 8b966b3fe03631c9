"""VOC's scores on a subset of the test images, and the detections that are saved."""

from __future__ import annotations

import json

import pytest
import torch

import detection  # noqa: F401  (patches before detectron2)

# isort: split
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances

from detection.evaluation import DETECTIONS_FILE, build_evaluator


def evaluate(name, folder, keep):
    """Evaluate the ground truth as detections, on the images for which `keep(index)` is true."""
    evaluator = build_evaluator(name, folder)
    evaluator.reset()
    for index, entry in enumerate(DatasetCatalog.get(name)):
        truth = entry["annotations"] if keep(index) else []
        detections = Instances((entry["height"], entry["width"]))
        detections.pred_boxes = Boxes(torch.tensor([box["bbox"] for box in truth]).reshape(-1, 4))
        detections.scores = torch.ones(len(truth))
        detections.pred_classes = torch.tensor([box["category_id"] for box in truth], dtype=torch.long)
        evaluator.process([entry], [{"instances": detections}])
    return evaluator.evaluate()["bbox"]


def test_a_subset_of_voc_has_two_means(voc, tmp_path):
    scores = evaluate(voc, tmp_path / "out", keep=lambda index: True)
    assert scores["AP50"] == pytest.approx(100 * 2 / 20)  # two of twenty classes are in the test list
    assert scores["AP50_present"] == pytest.approx(100)
    saved = json.loads((tmp_path / "out" / DETECTIONS_FILE).read_text())
    assert len(saved) == 10
    assert set(saved[0]) >= {"image_id", "category_id", "bbox", "score"}


def test_no_detections_at_all_score_zero(voc, tmp_path):
    scores = evaluate(voc, tmp_path / "out", keep=lambda index: False)
    assert set(scores.values()) == {0.0}
    assert json.loads((tmp_path / "out" / DETECTIONS_FILE).read_text()) == []
