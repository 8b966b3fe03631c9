"""Result records read back as written; the report's table never puts two protocols on one row."""

from __future__ import annotations

import json

import pytest

from adco import report
from adco.errors import UserError
from adco.records import Record, load_record


def record(protocol: str, **scores: float) -> Record:
    return Record(protocol, scores, {"name": "x.pth", "sha256": "0"}, {"name": "sample"}, {"seed": 1})


def test_a_record_reads_back_as_written(tmp_path):
    written = record("knn/k20-t0.07", top1=12.5)
    assert load_record(written.write(tmp_path / "a.json")) == written
    assert written.hardware
    assert set(written.versions) == {"python", "torch", "torchvision"}


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"schema": 1}', '{"schema": 1, "surprise": 2}', '{"schema": 99}']
)
def test_what_is_no_record_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"a\.json"):
        load_record(path)


def test_a_row_is_one_protocol_and_one_score():
    models = {
        "random": [record("knn/k20", top1=10.0, top5=40.0), record("voc07-svm/pcl", mAP=20.0)],
        "pretrained": [record("knn/k20", top1=30.0), record("voc07-svm/vissl", mAP=50.0)],
    }
    rows = report.table_rows(models)
    assert [(row.protocol, row.score, dict(row.values)) for row in rows] == [
        ("knn/k20", "top1", {"random": 10.0, "pretrained": 30.0}),
        ("voc07-svm/pcl", "mAP", {"random": 20.0}),
        ("voc07-svm/vissl", "mAP", {"pretrained": 50.0}),
    ]
    text = report.as_text(rows, ("random", "pretrained")).splitlines()
    assert text[2].split() == ["knn/k20", "top1", "10.00", "30.00", "+20.00"]
    assert text[3].split() == ["voc07-svm/pcl", "mAP", "20.00", "not", "run"]


def test_the_page_is_self_contained_and_escapes():
    rows = report.table_rows({"a<b": [record("p&q", top1=1.0)]})
    metrics = [{"epoch": 1, "loss": 2.0, "accuracy": 3.0}, {"epoch": 2, "knn_top1": 4.0}]
    page = report.page("T", "lead", rows, ("a<b",), {"curves": report.curves(metrics, 3.0)}, ["note"])
    assert "a&lt;b" in page
    assert "p&amp;q" in page
    assert "data:image/png;base64," in page
    assert "http://" not in page and "https://" not in page  # noqa: PT018
    assert json.dumps(rows[0].values) == '{"a<b": 1.0}'
