"""Scores: subsets of VOC, undefined values, one level of names."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import detection  # noqa: F401  (patches before detectron2)

# isort: split
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances, register_pascal_voc
from detectron2.evaluation import pascal_voc_evaluation
from detectron2.structures import Boxes, BoxMode, Instances

from adco.evaluation.comparison import paired_bootstrap
from adco.evaluation.predictions import load_predictions
from adco.evaluation.records import Record, load_record
from adco.utils.errors import UserError
from detection import scoring
from detection.evaluation import PREDICTIONS, build_evaluator
from detection.predictions import BOXES, keep_beside
from detection.record import flat_scores
from tests.detection.helpers import make_coco, make_voc


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


def coco_scores(root, name, out, evaluator):
    """detectron2's COCO evaluation of the ground truth moved, mislabelled and rescored at random, by one evaluator."""
    scoring.use(evaluator)
    judge, rng = build_evaluator(name, out / evaluator), np.random.default_rng(0)
    judge.reset()
    for entry in DatasetCatalog.get(name):
        size = (entry["height"], entry["width"])
        found, boxes = Instances(size), []
        for box in [box["bbox"] for box in entry["annotations"]] * 3:
            x, y, w, h = np.array(box) + rng.normal(0, 3, 4)
            boxes.append([x, y, x + max(w, 2), y + max(h, 2)])
        found.pred_boxes = Boxes(torch.tensor(boxes))
        found.pred_masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(found.pred_masks, np.array(boxes).clip(0).astype(int), strict=True):
            mask[y0:y1, x0:x1] = True
        found.scores = torch.from_numpy(rng.random(len(boxes)))
        labels = [box["category_id"] for box in entry["annotations"]] * 3
        found.pred_classes = torch.tensor([c if rng.random() < 0.8 else 0 for c in labels])
        judge.process([entry], [{"instances": found}])
    return judge.evaluate()


def test_every_evaluator_gives_the_same_coco_numbers(tmp_path):
    root, name = make_coco(tmp_path, test=12) / "coco", f"coco_{tmp_path.name}"
    annotations = root / "annotations" / "instances_val2017.json"
    register_coco_instances(name, {}, str(annotations), str(root / "val2017"))
    try:
        found = {each: coco_scores(root, name, tmp_path, each) for each in scoring.installed()}
    finally:
        scoring.use()
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    reference = found.pop("pycocotools")
    assert 5 < reference["bbox"]["AP"] < 95
    assert 5 < reference["segm"]["AP"] < 95
    assert "faster-coco-eval" in found
    for results in found.values():
        for task in ("bbox", "segm"):
            assert results[task] == pytest.approx(reference[task], abs=1e-9, nan_ok=True)


def test_an_evaluator_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(scoring, "installed", lambda: ("pycocotools",))
    with pytest.raises(UserError, match="--evaluator detectron2: not installed here; there are pycocotools"):
        scoring.use("detectron2")


def test_scores_are_flat_and_undefined_ones_named():
    results = {
        "bbox": {"AP": 40.0, "APs": float("nan"), "AP-person": 50.0, "AP-cat": float("nan")},
        "segm": {"AP": 35.0},
    }
    assert flat_scores(results) == ({"AP": 40.0, "AP/person": 50.0, "segm/AP": 35.0}, ["APs"])
    two = {"voc_2007_test": {"bbox": {"AP": 1.0}}, "voc_2012_val": {"bbox": {"AP": float("nan")}}}
    assert flat_scores(two) == ({"voc_2007_test/AP": 1.0}, ["voc_2012_val/AP"])


def noisy(entry, rng, labels):
    """Three detections of every box: moved, sometimes mislabelled, with a random score."""
    found, boxes = Instances((entry["height"], entry["width"])), []
    truth = entry["annotations"] * 3
    for x0, y0, x1, y1 in (
        BoxMode.convert(b["bbox"], b.get("bbox_mode", BoxMode.XYXY_ABS), BoxMode.XYXY_ABS) for b in truth
    ):
        left, top = rng.normal(0, 2, 2)
        boxes.append([x0 + left, y0 + top, max(x1, x0 + 2) + left, max(y1, y0 + 2) + top])
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.from_numpy(rng.random(len(truth)))
    chosen = [box["category_id"] if rng.random() < 0.8 else int(rng.choice(labels)) for box in truth]
    found.pred_classes = torch.tensor(chosen, dtype=torch.long)
    return found


def judged(name, folder, seed):
    evaluator, rng = build_evaluator(name, folder), np.random.default_rng(seed)
    evaluator.reset()
    entries = DatasetCatalog.get(name)
    labels = sorted({box["category_id"] for entry in entries for box in entry["annotations"]})
    for entry in entries:
        evaluator.process([entry], [{"instances": noisy(entry, rng, labels)}])
    return evaluator.evaluate()["bbox"]


def kept_record(folder, scores):
    kept = folder / "inference" / BOXES
    kept.parent.mkdir(parents=True, exist_ok=True)
    (folder / BOXES).replace(kept)
    data = {"name": "x", "fingerprint": "f"}
    shown = {key: scores[key] for key in ("AP", "AP50", "AP75")}
    predictions = keep_beside(folder / "record.json")
    path = Record("detection/x", shown, {"name": "a"}, data, predictions=predictions).write(folder / "record.json")
    return load_record(path)


def test_what_is_kept_of_voc_gives_the_evaluators_numbers(voc, tmp_path):
    """AP, AP50 and AP75 from the kept matches equal detectron2's; two detectors are compared on the images."""
    first, second = (judged(voc, tmp_path / str(seed), seed) for seed in (1, 2))
    assert 0 < first["AP"] < first["AP50"] < 10  # two of twenty classes are in the test list
    a, b = kept_record(tmp_path / "1", first), kept_record(tmp_path / "2", second)
    _, metrics, images = load_predictions(a)
    for name in ("AP", "AP50", "AP75"):
        assert metrics[name](np.ones((1, images)))[0] == pytest.approx(first[name], abs=1e-9)
    found = paired_bootstrap(a, b, "AP50", draws=100)
    assert found.difference == pytest.approx(second["AP50"] - first["AP50"], abs=1e-9)
    assert found.low <= found.difference <= found.high


def test_ap_by_class_is_detectron2s_own(voc, tmp_path, monkeypatch):
    """Against each number that detectron2's evaluator has before it takes the mean."""
    truth = {}

    def watched(detections, annotations, listing, name, ovthresh, use_07_metric):
        found = voc_eval(detections, annotations, listing, name, ovthresh, use_07_metric)
        truth.setdefault(name, []).append(100 * found[2])
        return found

    voc_eval = pascal_voc_evaluation.voc_eval
    monkeypatch.setattr(pascal_voc_evaluation, "voc_eval", watched)
    scores = judged(voc, tmp_path / "out", 1)
    assert {name for name in scores if "-" in name} == {"AP-cat", "AP-dog", "AP50-cat", "AP50-dog"}
    for name in ("cat", "dog"):
        assert scores[f"AP50-{name}"] == pytest.approx(truth[name][0], abs=1e-9)
        assert scores[f"AP-{name}"] == pytest.approx(np.mean(truth[name]), abs=1e-9)
    assert 0 < scores["AP-cat"] != scores["AP-dog"] > 0


def test_what_is_kept_of_coco_gives_the_evaluators_numbers(tmp_path):
    root, name = make_coco(tmp_path, test=12) / "coco", f"coco_kept_{tmp_path.name}"
    annotations = root / "annotations" / "instances_val2017.json"
    register_coco_instances(name, {}, str(annotations), str(root / "val2017"))
    try:
        scores = judged(name, tmp_path / "out", 1)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    _, metrics, images = load_predictions(kept_record(tmp_path / "out", scores))
    assert 1 < scores["AP"] < scores["AP50"] and images == 12
    for key in ("AP", "AP50", "AP75"):
        assert metrics[key](np.ones((1, images)))[0] == pytest.approx(scores[key], abs=1e-9)
