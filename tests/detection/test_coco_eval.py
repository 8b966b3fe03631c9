"""Every implementation of COCOeval gives the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import detection  # noqa: F401  (patches before detectron2)

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import Boxes, Instances

from adco.utils.errors import UserError
from detection import coco_eval
from detection.evaluation import build_evaluator
from tests.detection.helpers import make_coco


def coco_scores(root, name, out, evaluator):
    """detectron2's COCO evaluation of the ground truth moved, mislabelled and rescored at random, by one evaluator."""
    coco_eval.use(evaluator)
    coco, rng = build_evaluator(name, out / evaluator), np.random.default_rng(0)
    coco.reset()
    for entry in DatasetCatalog.get(name):
        size = (entry["height"], entry["width"])
        detections, boxes = Instances(size), []
        for box in [box["bbox"] for box in entry["annotations"]] * 3:
            x, y, w, h = np.array(box) + rng.normal(0, 3, 4)
            boxes.append([x, y, x + max(w, 2), y + max(h, 2)])
        detections.pred_boxes = Boxes(torch.tensor(boxes))
        detections.pred_masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(detections.pred_masks, np.array(boxes).clip(0).astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        detections.scores = torch.from_numpy(rng.random(len(boxes)))
        labels = [box["category_id"] for box in entry["annotations"]] * 3
        detections.pred_classes = torch.tensor([c if rng.random() < 0.8 else 0 for c in labels])
        coco.process([entry], [{"instances": detections}])
    return coco.evaluate()


def test_every_evaluator_gives_the_same_coco_numbers(tmp_path):
    root, name = make_coco(tmp_path, test=12) / "coco", f"coco_{tmp_path.name}"
    annotations = root / "annotations" / "instances_val2017.json"
    register_coco_instances(name, {}, str(annotations), str(root / "val2017"))
    try:
        scores = {each: coco_scores(root, name, tmp_path, each) for each in coco_eval.installed()}
    finally:
        coco_eval.use()
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    reference = scores.pop("pycocotools")
    assert 5 < reference["bbox"]["AP"] < 95
    assert 5 < reference["segm"]["AP"] < 95
    assert "faster-coco-eval" in scores
    for results in scores.values():
        for task in ("bbox", "segm"):
            assert results[task] == pytest.approx(reference[task], abs=1e-9, nan_ok=True)


def test_an_evaluator_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(coco_eval, "installed", lambda: ("pycocotools",))
    with pytest.raises(UserError, match="--evaluator detectron2: not installed here; there are pycocotools"):
        coco_eval.use("detectron2")
