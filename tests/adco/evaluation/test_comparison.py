"""Comparing records: columns never mix, reasons are said, and the paired bootstrap is what its loop says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from adco.evaluation.average_precision import (
    average_precision,
    eleven_point_ap,
    sample_average_precision,
    weighted_mean,
)
from adco.evaluation.comparison import (
    bootstrap_difference,
    column_key,
    incompatibilities,
    over_trials,
    paired_bootstrap,
    significance,
)
from adco.evaluation.predictions import detection_ap, load_predictions, write_boxes, write_hits, write_ranks
from adco.evaluation.published import load_published
from adco.evaluation.records import Record, Score, load_record
from adco.utils.errors import UserError
from tests import ROOT

RNG = np.random.default_rng(0)
NAMES = tuple(f"{i}.jpg" for i in range(200))


def record(protocol="knn/k20-t0.07", metric="top1", value=50.0, **more) -> Record:
    data = {"name": "imagenette160", "fingerprint": "f", "test_images": 200} | more.pop("data", {})
    checkpoint = {"name": "a", "sha256": "a", "arch": "resnet18"} | more.pop("checkpoint", {})
    return Record(protocol, {metric: value}, checkpoint, data, more.pop("settings", {}), code="c", **more)


def published(table, method, metric="", multicrop=False):
    rows = [row for row in load_published() if (row.table, row.method, row.multicrop) == (table, method, multicrop)]
    return next(row for row in rows if metric in ("", row.metric))


def saved(folder, name, hits, protocol="knn/k20-t0.07", names=NAMES):
    kept = write_hits(folder / f"{name}.npz", names, {"top1": hits})
    value = 100 * float(np.mean(hits))
    return load_record(record(protocol, value=value, predictions=kept).write(folder / f"{name}.json"))


# columns and reasons


def test_a_column_is_one_protocol_on_one_data_set():
    same = {column_key(record()), column_key(record(checkpoint={"name": "b", "sha256": "b"}, value=3.0))}
    assert len(same) == 1 and "subset f" in same.pop().title
    others = [
        record(), record("knn/k200-t0.07"), record("knn/k20-t0.07@96px"), record(data={"fingerprint": "g"}),
        record(data={"official": True}), record(data={"name": "ImageNet"}), published("adco-1", "AdCo"),
    ]  # fmt: skip
    assert len({column_key(row) for row in others}) == len(others)


def test_the_committed_records_fall_into_columns_without_mixing():

    records = [load_record(path) for path in ROOT.glob("results/*/*.json")]
    columns = {}
    for one in records:
        columns.setdefault(column_key(one), []).append(one)
    for key, rows in columns.items():
        assert len({row.protocol for row in rows}) == len({row.data.fingerprint for row in rows}) == 1, key
        if len(rows) > 1 and rows[0].settings.get("seed") is not None:
            assert not [r for r in incompatibilities(rows[0], rows[1]) if r.startswith(("protocol", "data", "image"))]


@pytest.mark.parametrize(
    ("a", "b", "says"),
    [
        (record(), record(), []),
        (record(), record("voc07-svm/pcl"), ["protocol: knn/k20-t0.07 against voc07-svm/pcl"]),
        (record(), record("knn/k20-t0.07@96px"), ["image size: the protocol’s own against 96px"]),
        (record(), record(data={"name": "ImageNet"}), ["data: imagenette160 against ImageNet"]),
        (record(), record(data={"fingerprint": "g"}), ["data: another selection or version of imagenette160"]),
        (record(data={"official": True}), record(), ["data: the second is not the official imagenette160"]),
        (record(checkpoint={"epochs": 14}), record(checkpoint={"epochs": 200}),
         ["epochs of pretraining: 14 against 200"]),
        (record(), record(checkpoint={"arch": "resnet50"}), ["architecture: resnet18 against resnet50"]),
        (record(settings={"norm": "BN"}), record(settings={"norm": "SyncBN"}), ["norm: BN against SyncBN"]),
        (record(settings={"overrides": ["SEED 1"]}), record(), ["changed from the protocol: SEED 1"]),
        (record(metric="mAP"), record(metric="sample_AP"), ["metric: mAP (the mean over classes of the AP over images) "
         "against sample_AP (the mean over images of the AP over classes)"]),
        (published("adco-4", "AdCo", "sample_AP"), published("adco-4", "SwAV", "mAP", True),
         ["protocol: voc07-linear/adco against own/voc07-svm", "metric: sample_AP", "caution: AdCo, table 4: the mean "
          "over images", "caution: AdCo, table 4: mAP of SVMs"]),
        (published("adco-4", "AdCo", "AP"), published("adco-4", "MoCo v2", "AP"),
         ["protocol: detection/coco_R_50_C4_2x against own/coco-detr", "detector: R50-C4 against DETR", "caution",
          "caution"]),
        (published("adco-1", "SimCLR"), published("adco-3", "SimCLR"),
         ["protocol: own/imagenet-linear is not ours", "epochs of pretraining: 200 against 800"]),
        (published("adco-4", "AdCo", "AP50"), published("moco-detection", "MoCo v2", "AP50"),
         ["epochs of pretraining: 800 against 200"]),
        (published("moco-detection", "MoCo v1", "AP50"),
         record("detection/smoke_voc_R_18_C4", "AP50", data={"name": "voc_2007_test"}),
         ["protocol", "data: VOC07+12 against voc_2007_test", "detector: R50-C4 against R18-C4", "architecture"]),
    ],
)  # fmt: skip
def test_why_two_numbers_may_not_be_compared(a, b, says):
    reasons = incompatibilities(a, b)
    assert len(reasons) == len(says), reasons
    for reason, start in zip(reasons, says, strict=True):
        assert reason.startswith(start)


def test_our_official_record_stands_beside_the_published_one():
    ours = record("detection/pascal_voc_R_50_C4_24k", "AP50", 82.0, checkpoint={"arch": "resnet50", "epochs": 800},
                  data={"name": "voc_2007_test", "official": True})  # fmt: skip
    assert incompatibilities(ours, published("moco-detection", "MoCo v2", "AP50")) == [
        "epochs of pretraining: 800 against 200"
    ]


# the paired bootstrap


def test_the_paired_bootstrap_is_its_loop(tmp_path):
    first = RNG.random(200) < 0.5
    second = first ^ (RNG.random(200) < 0.1)
    a, b = saved(tmp_path, "a", first), saved(tmp_path, "b", second)
    test = paired_bootstrap(a, b, "top1", draws=300, seed=3)
    generator, loop = np.random.default_rng(3), []
    while len(loop) < 300:
        for images in generator.integers(0, 200, (50, 200)):
            loop.append(100 * (second[images].mean() - first[images].mean()))
    assert test.difference == pytest.approx(100 * (second.mean() - first.mean()))
    assert (test.low, test.high) == pytest.approx(tuple(np.percentile(loop, [2.5, 97.5])))
    tail = min(sum(d <= 1e-12 for d in loop), sum(d >= -1e-12 for d in loop)) + 1
    assert test.p == pytest.approx(min(1, 2 * tail / 301))


def test_pairing_sees_what_two_intervals_do_not(tmp_path):
    """b is right wherever a is, and on 8 images more: the intervals overlap, the difference is sure."""
    first = np.arange(200) < 100
    second = np.arange(200) < 108
    test = paired_bootstrap(saved(tmp_path, "a", first), saved(tmp_path, "b", second), "top1")
    assert test.low > 0 and test.significant and test.difference == pytest.approx(4.0)
    same = paired_bootstrap(saved(tmp_path, "c", first), saved(tmp_path, "d", first), "top1")
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_the_p_value_is_rarely_small_where_there_is_no_difference():
    """200 pairs of equal classifiers: about 1 in 20 has p below .05 (a binomial's 99.9% range is 1 to 21)."""
    small = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        a, b = (weighted_mean(rng.random(100) < 0.6) for _ in "ab")
        small += bootstrap_difference(a, b, 100, 200, trial)[3] < 0.05
    assert 1 <= small <= 21


def test_where_it_is_not_possible_the_reason_is_said(tmp_path):
    a = saved(tmp_path, "a", RNG.random(200) < 0.5)
    for other, says in (
        (load_record(record(value=3).write(tmp_path / "old.json")), "no predictions beside it"),
        (saved(tmp_path, "c", RNG.random(200) < 0.5, "knn/k200-t0.07"), "not of one column"),
        (saved(tmp_path, "d", RNG.random(200) < 0.5, names=NAMES[::-1]), "other images"),
    ):
        with pytest.raises(ValueError, match=f"not possible, because .*{says}"):
            paired_bootstrap(a, other, "top1")
        assert says in str(significance(a, other, "top1"))
    assert "has no mAP" in str(significance(a, a, "mAP"))


@pytest.mark.parametrize("fault", ["changed", "absent", "of another record", "no npz"])
def test_damaged_predictions_are_named(tmp_path, fault):
    path = tmp_path / "a.npz"
    damaged = saved(tmp_path, "a", RNG.random(200) < 0.5)
    if fault == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    if fault == "absent":
        path.unlink()
    if fault == "of another record":
        kept = write_hits(path, NAMES, {"top1": np.zeros(200, dtype=bool)})
        damaged = load_record(replace(damaged, predictions=kept).write(tmp_path / "a.json"))
    if fault == "no npz":
        path.write_bytes(b"PK\x03\x04")
        content = json.loads((tmp_path / "a.json").read_text())
        import hashlib

        content["predictions"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (tmp_path / "a.json").write_text(json.dumps(content))
        damaged = load_record(tmp_path / "a.json")
    with pytest.raises(UserError, match=r"a\.npz: "):
        load_predictions(damaged)


def test_trials_are_compared_by_welch():
    from scipy.stats import ttest_ind

    first, second = [10.0, 11.0, 12.5, 9.0, 10.2], [12.0, 13.5, 12.9]
    test = over_trials(Score.over_trials(first), Score.over_trials(second), "AP")
    theirs = ttest_ind(second, first, equal_var=False)
    low, high = theirs.confidence_interval()
    assert test.p == pytest.approx(theirs[1]) and (test.low, test.high) == pytest.approx((low, high))
    a, b = (record(metric="AP", value=Score.over_trials(values)) for values in (first, second))
    assert significance(a, b, "AP") == test
    assert "two trials" in str(pytest.raises(ValueError, over_trials, Score(1.0), Score(2.0), "AP").value)


# what is kept


def test_ranks_keep_average_precision_exactly(tmp_path):
    scores, positive = np.round(RNG.standard_normal((200, 5)), 1), RNG.random((200, 5)) < 0.2
    counted = RNG.random((200, 5)) < 0.9
    targets = np.where(counted, positive, 2)
    columns = [(positive[counted[:, c], c], scores[counted[:, c], c]) for c in range(5)]
    aps, elevens = (np.array([ap(*column) for column in columns]) for ap in (average_precision, eleven_point_ap))
    kept = write_ranks(tmp_path / "a.npz", NAMES, scores, targets)
    made = record(metric="mAP", value=100 * np.mean(aps), predictions=kept).write(tmp_path / "a.json")
    _, metrics, images = load_predictions(load_record(made))
    whole = np.ones((1, images))
    assert metrics["mAP"](whole)[0] == pytest.approx(100 * np.mean(aps), abs=1e-9)
    assert metrics["mAP11"](whole)[0] == pytest.approx(100 * np.mean(elevens), abs=1e-9)
    by_image = np.nanmean(sample_average_precision(positive, scores))
    kept = write_ranks(tmp_path / "b.npz", NAMES, scores, positive, by_image=True)
    made = record(metric="sample_AP", value=100 * by_image, predictions=kept).write(tmp_path / "b.json")
    assert load_predictions(load_record(made))[1]["sample_AP"](whole)[0] == pytest.approx(100 * by_image, abs=1e-9)
    assert (tmp_path / "a.npz").stat().st_size < 4000


@pytest.mark.parametrize("points", [0, 11, 101])
def test_detection_ap_of_drawn_images_is_that_of_repeated_ones(points):
    image, matched = RNG.integers(0, 10, 80), RNG.random(80) < 0.4
    ignored, positives = RNG.random(80) < 0.1, np.full(10, 5.0)
    weights = RNG.integers(0, 4, (6, 10))
    aps = detection_ap(matched, ignored, image, positives, points, weights)
    for drawn, value in zip(weights, aps, strict=True):
        repeated = np.repeat(np.arange(80), drawn[image])
        rows = repeated[~ignored[repeated]]
        true = np.cumsum(matched[rows])
        recall, precision = true / (drawn @ positives), true / np.arange(1, len(rows) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        if points:
            asked = np.arange(0.0, 1.1, 0.1) if points == 11 else np.linspace(0, 1, 101)
            expected = np.mean([best[recall >= r].max(initial=0) for r in asked])
        else:
            expected = np.sum(np.diff(recall, prepend=0) * best)
        # equal detections of a repeated image come one after another instead of at once
        assert value == pytest.approx(expected, abs=0.03)
    once = detection_ap(matched, ignored, image, positives, points, np.ones((1, 10)))[0]
    rows = np.flatnonzero(~ignored)
    recall, precision = np.cumsum(matched[rows]) / 50, np.cumsum(matched[rows]) / np.arange(1, len(rows) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    asked = np.arange(0.0, 1.1, 0.1) if points == 11 else np.linspace(0, 1, 101)
    by_points = np.mean([best[recall >= r].max(initial=0) for r in asked])
    assert once == pytest.approx(by_points if points else np.sum(np.diff(recall, prepend=0) * best), abs=1e-12)


def test_boxes_give_ap_at_every_iou(tmp_path):
    """Two classes of three, one image each; the second detection reaches IoU .75 alone, a third is ignored."""
    arrays = {
        "image": np.array([0, 0, 1], dtype=np.uint32), "category": np.array([0, 0, 1], dtype=np.uint8),
        "matched": np.array([0, 0b111111, 0], dtype=np.uint16), "ignored": np.array([0, 0, 0b1], dtype=np.uint16),
        "positives": np.array([[1, 0, 0], [0, 1, 0]]), "points": np.int64(0),
    }  # fmt: skip
    kept = write_boxes(tmp_path / "a.npz", NAMES[:2], arrays)
    made = record("detection/x", "AP50", 100 * 0.5 / 3, predictions=kept).write(tmp_path / "a.json")
    _, metrics, images = load_predictions(load_record(made))
    whole = np.ones((1, images))
    assert metrics["AP50"](whole)[0] == pytest.approx(100 * 0.5 / 3)
    assert metrics["AP75"](whole)[0] == pytest.approx(100 * 0.5 / 3)
    assert metrics["AP"](whole)[0] == pytest.approx(100 * 0.6 * 0.5 / 3)
