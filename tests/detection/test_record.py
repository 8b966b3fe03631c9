"""detectron2's nested results as the flat scores of a record."""

from __future__ import annotations

import detection  # noqa: F401  (patches before detectron2)

# isort: split
from detection.record import flat_scores


def test_scores_are_flat_and_undefined_ones_named():
    results = {
        "bbox": {"AP": 40.0, "APs": float("nan"), "AP-person": 50.0, "AP-cat": float("nan")},
        "segm": {"AP": 35.0},
    }
    assert flat_scores(results) == ({"AP": 40.0, "AP/person": 50.0, "segm/AP": 35.0}, ["APs"])
    two = {"voc_2007_test": {"bbox": {"AP": 1.0}}, "voc_2012_val": {"bbox": {"AP": float("nan")}}}
    assert flat_scores(two) == ({"voc_2007_test/AP": 1.0}, ["voc_2012_val/AP"])
