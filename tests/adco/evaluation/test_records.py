"""Result records: read back as written, old ones upgraded, unknown keys named; code versions follow the source code."""

from __future__ import annotations

import json
import math
import subprocess

import pytest

from adco.evaluation import provenance
from adco.evaluation.provenance import code_version, command_line, source_files
from adco.evaluation.records import Checkpoint, Predictions, Record, Score, load_record, reuse_obstacles
from adco.utils.errors import UserError
from tests import ROOT

RESULTS = sorted((ROOT / "results").glob("*/*.json"))
SCHEMA1 = {
    "protocol": "voc07-lowshot/pcl", "scores": {"mAP/k1": 12.0}, "schema": 1,
    "checkpoint": {"name": "a.pkl", "sha256": "b", "arch": "resnet18", "origin": {"name": "a.pth", "sha256": "a"}},
    "data": {"name": "VOC2007", "fingerprint": "f", "official": False, "test_images": 5, "unreadable": {"count": 0}},
    "settings": {"interval95": {"mAP/k1": [7.032, 16.968]}, "interval_of": "Student's t", "k1/trials": [10, 12, 14]},
    "hardware": "a laptop", "versions": {"torch": "2"}, "commit": "c", "command": "d", "created": "e",
}  # fmt: skip


def record(**more) -> Record:
    scores = {"top1": Score(12.5, 11.0, 14.0, over="images"), "top5": 50}
    checkpoint = {"name": "x.pth", "sha256": "0", "arch": "resnet18", "origin": {"name": "y.pth", "sha256": "1"}}
    data = {"name": "sample", "fingerprint": "f", "train_images": 3, "unreadable": {"count": 0}}
    return Record("knn/k20-t0.07", scores, checkpoint, data, {"seed": 1}, **more)


def test_a_record_reads_back_as_written(tmp_path):
    written = record(predictions=Predictions("a.npz", "0" * 64, "hits"))
    read = load_record(written.write(tmp_path / "a.json"))
    assert read == written and read.scores["top1"].low == 11.0
    assert written.hardware and set(written.versions) == {"adco", "python", "torch", "torchvision"}
    assert written.code is not None and len(written.code) == 16
    assert written.code == code_version("knn/k20-t0.07")
    assert written.data.counts == {"train_images": 3} and written.data.details == {"unreadable": {"count": 0}}
    assert written.checkpoint.pretrained == Checkpoint("y.pth", "1")


def test_a_score_computes_as_its_value_and_is_more_than_it():
    score = Score(12.5, 11.0, 14.0)
    assert score > 12 and f"{score:.1f}" == "12.5" and sum([score, score]) == 25 and {12.5: 1}[score] == 1
    assert score == 12.5 and score != Score(12.5, 11.0, 15.0) and score == Score(12.5, 11.0, 14.0)
    assert json.dumps({"a": score}) == '{"a": 12.5}'


def test_over_trials_is_students():
    score = Score.over_trials([10.0, 12.0, 14.0])
    assert (score, score.std, score.trials, score.over) == (12.0, 2.0, 3, "trials")
    assert score.interval is not None
    low, high = score.interval
    assert high - score == pytest.approx(4.302653 * 2 / math.sqrt(3), rel=1e-5)
    assert low == pytest.approx(2 * score - high)
    assert Score.over_trials([3.0]) == Score(3.0)
    assert Score.over_images(3.0, (math.nan, math.nan)) == Score(3.0)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_committed_record_loads_with_the_values_in_its_file(path):
    content, read = json.loads(path.read_text()), load_record(path)
    for name, score in read.scores.items():
        raw = content["scores"][name]
        assert score == pytest.approx(raw["value"] if isinstance(raw, dict) else raw, abs=1e-9)
    assert read.checkpoint.sha256 == content["checkpoint"].get("sha256", "")
    assert read.data.fingerprint == content["data"].get("fingerprint", "")


def test_schema_1_keeps_its_intervals_deviations_and_trials(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(SCHEMA1))
    read = load_record(path)
    score = read.scores["mAP/k1"]
    assert (score, score.std, score.trials, score.over) == (12.0, 2.0, 3, "trials")
    assert (score.low, score.high) == pytest.approx((7.032, 16.968), abs=1e-3)
    assert read.schema == 2 and read.code == "" and "interval95" not in read.settings
    assert read.data.counts == {"test_images": 5} and read.checkpoint.origin is not None
    assert read.checkpoint.origin.sha256 == "a"
    trials = SCHEMA1 | {
        "protocol": "detection/x", "scores": {"AP": 2.0, "AP_std": 1.4142135623730951},
        "settings": {"trials": 2, "each_trial": [{"scores": {"AP": 1.0}}, {"scores": {"AP": 3.0}}]},
    }  # fmt: skip
    path.write_text(json.dumps(trials))
    assert load_record(path).scores == {"AP": Score.over_trials([1.0, 3.0])}
    images = SCHEMA1 | {"scores": {"mAP": 5.0, "AP/cat": 5.0}, "settings": {"interval95": {"mAP": [4.0, 6.0]}}}
    path.write_text(json.dumps(images))
    assert load_record(path).scores == {"mAP": Score(5.0, 4.0, 6.0, over="images"), "AP/cat": Score(5.0)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("", "not a result record"),
        ("[1]", "not a result record"),
        ("{}", "schema"),
        ('{"schema": 1}', "expected keys and values"),
        ('{"schema": "2"}', "schema: expected 1 to 2"),
        ({"schema": 99}, "newer than 2"),
        (json.dumps(SCHEMA1 | {"surprise": 2}), "unknown key 'surprise'"),
        ({"protocl": "x"}, "unknown key 'protocl'; did you mean protocol"),
        ({"protocol": 5}, "protocol: expected a text, found 5"),
        ({"scores": {"top1": {"value": "12"}}}, r"scores\.top1: value: expected a number, found '12'"),
        ({"scores": {"top1": {"value": True}}}, r"scores\.top1: value: expected a number"),
        ({"scores": {"top1": {"valeu": 12}}}, "did you mean value"),
        ({"scores": {"top1": 12.5}}, r"scores\.top1: expected keys and values"),
        ({"checkpoint": {"sha": "x"}}, r"unknown key 'checkpoint\.sha'"),
        ({"data": {"counts": {"images": 1.5}}}, r"data\.counts\.images: expected a whole number"),
        ({"data": {"official": "yes"}}, "official: expected true or false"),
        ({"predictions": {"file": "a"}}, "sha256 is missing"),
    ],
)
def test_what_is_no_record_is_named_with_its_key(tmp_path, change, says):
    path = record().write(tmp_path / "a.json")
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"a\.json: .*{says}"):
        load_record(path)


def test_a_record_is_reused_for_the_same_work_alone():
    made = record()
    assert made.code is not None
    same = ("1", "knn/k20-t0.07", "f", made.code)
    assert reuse_obstacles(made, *same) == []
    for place, what in enumerate(("checkpoint", "protocol", "data", "code")):
        other = [*same[:place], "other", *same[place + 1 :]]
        assert len(reuse_obstacles(made, *other)) == 1 and f"another {what}" in reuse_obstacles(made, *other)[0]
    unknown = record(code="")
    assert reuse_obstacles(unknown, *same[:3], "") == ["the code is not known"]


@pytest.fixture
def project(tmp_path):
    """A project of two rooms: transfer/a.py imports adco.used, which imports adco.deep inside a function."""
    files = {
        "adco/__init__.py": "", "adco/used.py": "def f():\n    from adco.pack import deep\n", "adco/report.py": "",
        "adco/pack/__init__.py": "", "adco/pack/deep.py": "import os, torch\n", "adco/pack/deep.c": "int x;",
        "transfer/__init__.py": "", "transfer/a.py": "from adco import used\n",
        "detection/b.py": "import adco.report\n", "detection/configs/c.yaml": "x: 1\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_code_version_is_of_what_the_room_imports(project):
    def names(room):
        return {path.relative_to(project).as_posix() for path in source_files((room,), project)}

    shared = {"adco/__init__.py", "adco/used.py", "adco/pack/__init__.py", "adco/pack/deep.py", "adco/pack/deep.c"}
    assert names("transfer") == shared | {"transfer/__init__.py", "transfer/a.py"}
    assert names("detection") == {"adco/__init__.py", "adco/report.py", "detection/b.py", "detection/configs/c.yaml"}


@pytest.mark.parametrize(
    ("changed", "moves"),
    [("transfer/a.py", True), ("adco/used.py", True), ("adco/pack/deep.py", True), ("adco/pack/deep.c", True),
     ("adco/report.py", False), ("detection/configs/c.yaml", False)],
)  # fmt: skip
def test_it_changes_with_what_can_move_a_score_and_with_nothing_else(project, changed, moves):
    before = provenance._code_version.__wrapped__(("transfer",), project)
    path = project / changed
    path.write_text(path.read_text() + "\n# another\n" if path.suffix == ".py" else path.read_text() + " ")
    assert (provenance._code_version.__wrapped__(("transfer",), project) != before) is moves
    assert provenance._code_version.__wrapped__(("absent",), project) == "unknown"


def test_a_dirty_tree_is_not_taken_for_its_commit():
    """The version is of the files: what git knows of them does not enter it."""
    tracked = subprocess.run(["git", "ls-files", "transfer"], cwd=ROOT, capture_output=True, text=True).stdout
    files = {path.relative_to(ROOT).as_posix() for path in source_files(("transfer",))}
    assert {name for name in tracked.split() if (ROOT / name).is_file()} <= files or not tracked
    assert {"adco/evaluation/knn.py", "adco/weights/backbone.py"} <= files and "adco/report/model_zoo.py" not in files


def test_a_command_can_be_copied_from_the_projects_root(monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{ROOT}/transfer/knn.py", "--data", f"{ROOT}/output/my data", "--k", "20"])
    assert command_line() == "transfer/knn.py --data 'output/my data' --k 20"
