"""The saved matches give detectron2's own AP, of all classes and of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import detection  # noqa: F401  (patches before detectron2)

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import pascal_voc_evaluation
from detectron2.structures import Boxes, BoxMode, Instances

from adco.evaluation.comparison import paired_bootstrap
from adco.evaluation.predictions import load_predictions
from adco.evaluation.records import Record, load_record
from detection.evaluation import build_evaluator
from detection.predictions import MATCHES_FILE, move_beside
from tests.detection.helpers import make_coco


def noisy(entry, rng, labels):
    """Three detections of every box: moved, sometimes mislabelled, with a random score."""
    detections, boxes = Instances((entry["height"], entry["width"])), []
    truth = entry["annotations"] * 3
    for x0, y0, x1, y1 in (
        BoxMode.convert(b["bbox"], b.get("bbox_mode", BoxMode.XYXY_ABS), BoxMode.XYXY_ABS) for b in truth
    ):
        left, top = rng.normal(0, 2, 2)
        boxes.append([x0 + left, y0 + top, max(x1, x0 + 2) + left, max(y1, y0 + 2) + top])
    detections.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    detections.scores = torch.from_numpy(rng.random(len(truth)))
    chosen = [box["category_id"] if rng.random() < 0.8 else int(rng.choice(labels)) for box in truth]
    detections.pred_classes = torch.tensor(chosen, dtype=torch.long)
    return detections


def evaluated(name, folder, seed):
    evaluator, rng = build_evaluator(name, folder), np.random.default_rng(seed)
    evaluator.reset()
    entries = DatasetCatalog.get(name)
    labels = sorted({box["category_id"] for entry in entries for box in entry["annotations"]})
    for entry in entries:
        evaluator.process([entry], [{"instances": noisy(entry, rng, labels)}])
    return evaluator.evaluate()["bbox"]


def record_of(folder, scores):
    kept = folder / "inference" / MATCHES_FILE
    kept.parent.mkdir(parents=True, exist_ok=True)
    (folder / MATCHES_FILE).replace(kept)
    data = {"name": "x", "fingerprint": "f"}
    shown = {key: scores[key] for key in ("AP", "AP50", "AP75")}
    predictions = move_beside(folder / "record.json")
    path = Record("detection/x", shown, {"name": "a"}, data, predictions=predictions).write(folder / "record.json")
    return load_record(path)


def test_the_saved_matches_of_voc_give_the_evaluators_numbers(voc, tmp_path):
    """AP, AP50 and AP75 from the saved matches equal detectron2's; two detectors are compared on the images."""
    first, second = (evaluated(voc, tmp_path / str(seed), seed) for seed in (1, 2))
    assert 0 < first["AP"] < first["AP50"] < 10  # two of twenty classes are in the test list
    a, b = record_of(tmp_path / "1", first), record_of(tmp_path / "2", second)
    _, metrics, images = load_predictions(a)
    for name in ("AP", "AP50", "AP75"):
        assert metrics[name](np.ones((1, images)))[0] == pytest.approx(first[name], abs=1e-9)
    comparison = paired_bootstrap(a, b, "AP50", draws=100)
    assert comparison.difference == pytest.approx(second["AP50"] - first["AP50"], abs=1e-9)
    assert comparison.low <= comparison.difference <= comparison.high


def test_ap_by_class_is_detectron2s_own(voc, tmp_path, monkeypatch):
    """Against each number that detectron2's evaluator has before it takes the mean."""
    truth = {}

    def watched(detections, annotations, listing, name, ovthresh, use_07_metric):
        result = voc_eval(detections, annotations, listing, name, ovthresh, use_07_metric)
        truth.setdefault(name, []).append(100 * result[2])
        return result

    voc_eval = pascal_voc_evaluation.voc_eval
    monkeypatch.setattr(pascal_voc_evaluation, "voc_eval", watched)
    scores = evaluated(voc, tmp_path / "out", 1)
    assert {name for name in scores if "-" in name} == {"AP-cat", "AP-dog", "AP50-cat", "AP50-dog"}
    for name in ("cat", "dog"):
        assert scores[f"AP50-{name}"] == pytest.approx(truth[name][0], abs=1e-9)
        assert scores[f"AP-{name}"] == pytest.approx(np.mean(truth[name]), abs=1e-9)
    assert 0 < scores["AP-cat"] != scores["AP-dog"] > 0


def test_the_saved_matches_of_coco_give_the_evaluators_numbers(tmp_path):
    root, name = make_coco(tmp_path, test=12) / "coco", f"coco_kept_{tmp_path.name}"
    annotations = root / "annotations" / "instances_val2017.json"
    register_coco_instances(name, {}, str(annotations), str(root / "val2017"))
    try:
        scores = evaluated(name, tmp_path / "out", 1)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    _, metrics, images = load_predictions(record_of(tmp_path / "out", scores))
    assert 1 < scores["AP"] < scores["AP50"] and images == 12
    for key in ("AP", "AP50", "AP75"):
        assert metrics[key](np.ones((1, images)))[0] == pytest.approx(scores[key], abs=1e-9)
