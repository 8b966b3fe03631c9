"""transfer/voc07.py: reading VOC2007's lists, the protocols by name, and the command line from end to end."""

import hashlib
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest

import transfer.features.reading
from adco.evaluation.records import load_record
from tests import ROOT
from tests.transfer.data import COLOURS, assert_one_line_error, files_below
from transfer.svm.protocols import PROTOCOLS, chosen_protocols
from transfer.svm.svm import ClassScore, Solver, svm_scores
from transfer.voc import read_voc
from transfer.voc07 import evaluate_svms, main, table


def arguments(voc, out, *more):
    fixed = ["--checkpoint", "random:resnet18", "--image-px", "64", "--device", "cpu", "--workers", "0", "--jobs", "1"]
    return [*fixed, "--data", str(voc), "--output-dir", str(out), *more]


# the protocols


def test_protocols_are_those_of_the_table():
    pcl, vissl = PROTOCOLS["pcl"], PROTOCOLS["vissl"]
    assert (pcl.fit, pcl.kind, pcl.rule.costs, pcl.rule.drop_difficult) == ("center", "gap", (0.5,), False)
    assert (vissl.fit, vissl.kind, vissl.rule.folds, vissl.rule.drop_difficult) == ("squash", "res5", 3, True)
    assert vissl.rule.costs == (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000)


def test_grids_of_the_other_protocols():
    fair, openselfsup = PROTOCOLS["fair"].rule.costs, PROTOCOLS["openselfsup"].rule.costs
    assert len(fair) == 26 and len(openselfsup) == 19
    assert fair[:2] == pytest.approx((1e-7, 1e-6)) and fair[9:11] == pytest.approx((100, 2**-19)) and fair[-1] == 2**-4
    assert openselfsup[:4] == (1, 10, 100, 2**-19) and openselfsup[-1] == 2**-4
    for name in ("fair", "openselfsup"):
        assert (PROTOCOLS[name].fit, PROTOCOLS[name].kind, PROTOCOLS[name].rule.folds) == ("squash", "res5", 3)


def test_seed_and_stage_reach_only_the_protocol_that_leaves_them_open():
    pcl, vissl = chosen_protocols(["pcl", "vissl", "pcl"], ["res4"], seed=7)
    assert (pcl.name, pcl.kind, pcl.rule.random_state) == ("voc07-svm/pcl", "gap", 0)
    assert (vissl.name, vissl.kind, vissl.rule.random_state) == ("voc07-svm/vissl-res4", "res4", 7)
    every = [p.name.partition("/")[2] for p in chosen_protocols(["vissl"], ["all"], 0)]
    assert every == ["vissl-res2", "vissl-res3", "vissl-res4", "vissl"]


def test_list_explains_each_in_two_lines(capsys):
    assert main(["--protocol", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [i for i, line in enumerate(lines) if not line.startswith(" ")]
    assert names == list(range(0, 3 * 8, 3)) and len(lines) == 24
    assert [lines[i] for i in names] == [*PROTOCOLS, "adco"]


def test_table_says_what_was_not_measured(voc):
    scores = [
        ClassScore(0.5),
        ClassScore(1.0, unconverged=3),
        ClassScore(math.nan, not_measured="no positive test image"),
    ]
    text = table(read_voc(voc), {"pcl": scores})
    assert "mAP                    75.00" in text and "2 of 20" in text
    assert "pcl: dog not measured: no positive test image" in text and "pcl: 3 fits stopped" in text


# the command line


def test_both_protocols_in_one_pass(voc, tmp_path, capsys, monkeypatch):
    reads, read = [], transfer.features.reading.read_image
    monkeypatch.setattr(transfer.features.reading, "read_image", lambda path: (reads.append(path), read(path))[1])
    out = tmp_path / "out"
    assert main(arguments(voc, out, "--protocol", "pcl", "--protocol", "vissl")) == 0
    assert len(reads) == 36
    printed = capsys.readouterr().out
    assert "24 trainval and 12 test images" in printed and "NOT the official VOC2007" in printed
    for name in ("pcl", "vissl"):
        record = load_record(out / f"voc07-svm-{name}@64px.json")
        assert record.protocol == f"voc07-svm/{name}@64px"
        classes = [record.scores[f"AP/{c}"] for c in COLOURS]
        assert record.scores["mAP"] == pytest.approx(np.mean(classes)) and 34 < record.scores["mAP"] <= 100
        assert f"{record.scores['mAP']:.2f}" in printed
        assert record.data.official is False and record.data.fingerprint == read_voc(voc).fingerprint
        assert record.settings["classes_counted"] == 3 and set(record.settings["cost"]) == set(COLOURS)
        assert record.settings["image_px"] == 64 and record.duration_seconds > 0
    assert set(load_record(out / "voc07-svm-pcl@64px.json").settings["cost"].values()) == {0.5}
    assert main(arguments(voc, out, "--protocol", "vissl", "--protocol", "pcl")) == 0
    assert len(reads) == 36 and "from the cache" in capsys.readouterr().out
    written = json.loads((out / "voc07-svm-pcl@64px.json").read_text())["scores"]
    scores = load_record(out / "voc07-svm-pcl@64px.json").scores
    assert {name: score["value"] for name, score in written.items()} == scores


def test_both_solvers_and_every_stage_on_one_pass(voc, tmp_path, monkeypatch):
    """The same mAP within 0.05 points by either solver; res2 ... res5 and GAP from one reading of each image."""
    reads, read = [], transfer.features.reading.read_image
    monkeypatch.setattr(transfer.features.reading, "read_image", lambda path: (reads.append(path), read(path))[1])
    wanted = ["--protocol", "pcl", "--protocol", "openselfsup", "--stage", "all"]
    out = {solver: tmp_path / solver for solver in ("newton", "liblinear")}
    for solver, folder in out.items():
        shared = ["--solver", solver, "--cache-dir", str(tmp_path / "cache")]
        assert main(arguments(voc, folder, *wanted, *shared)) == 0
    assert len(reads) == 36
    names = sorted(path.name for path in out["newton"].glob("*.json"))
    assert len(names) == 5 and names == sorted(path.name for path in out["liblinear"].glob("*.json"))
    for name in names:
        ours, theirs = (load_record(folder / name) for folder in out.values())
        assert ours.scores["mAP"] == pytest.approx(theirs.scores["mAP"], abs=0.05)
        assert (ours.settings["solver"], theirs.settings["solver"]) == ("newton", "liblinear")


def test_records_carry_intervals_and_trials(voc, tmp_path):
    assert main(arguments(voc, tmp_path)) == 0
    record = load_record(tmp_path / "voc07-svm-pcl@64px.json")
    for name in ("mAP", "mAP11"):
        score = record.scores[name]
        assert score.low <= score <= score.high and score.high - score.low > 1 and score.over == "images"
    assert record.settings["trials"] == 1


def test_low_shot_writes_its_draws(voc, tmp_path, capsys):
    wanted = [f"--protocol=lowshot-{name}" for name in ("vissl", "vissl-cv", "pcl")]
    assert main(arguments(voc, tmp_path, *wanted, "--shots", "1", "--shots", "2")) == 0
    for name in ("vissl", "vissl-cv", "pcl"):
        record = load_record(tmp_path / f"voc07-lowshot-{name}@64px.json")
        text = (tmp_path / record.settings["draws"]).read_bytes()
        assert hashlib.sha256(text).hexdigest() == record.settings["draws_sha256"]
        assert set(record.scores) == {"mAP/k1", "mAP/k2"} and record.settings["trials"] == 5
        for k in (1, 2):
            trials = record.settings[f"k{k}/trials"]
            assert record.scores[f"mAP/k{k}"] == pytest.approx(np.mean(trials))
            assert record.scores[f"mAP/k{k}"].std == pytest.approx(np.std(trials, ddof=1))
    assert record.settings["k1/trials"] != record.settings["k2/trials"]


def test_linear_adco_reports_both_metrics(voc, tmp_path, capsys):
    assert main(arguments(voc, tmp_path, "--protocol", "adco", "--epochs", "2")) == 0
    record = load_record(tmp_path / "voc07-linear-adco-2ep@64px.json")
    assert record.protocol == "voc07-linear/adco-2ep@64px"
    assert set(record.scores) == {"sample_AP", "mAP"} | {f"AP/{name}" for name in COLOURS}
    assert record.scores["mAP"] == pytest.approx(np.mean([record.scores[f"AP/{name}"] for name in COLOURS]))
    assert record.scores["sample_AP"] != record.scores["mAP"]
    assert record.settings["statistics_moved"] is True and record.data.counts["train_images"] == 12
    assert "the AdCo paper's number" in capsys.readouterr().out


def test_skipped_images_are_in_the_record(voc, tmp_path, capsys):
    (voc / "JPEGImages" / "000004.jpg").write_bytes(b"broken")
    out = tmp_path / "out"
    assert_one_line_error(capsys, main(arguments(voc, out)), "000004.jpg", "--max-bad-share")
    assert files_below(out) == []
    assert main(arguments(voc, out, "--max-bad-share", "0.05")) == 0
    record = load_record(out / "voc07-svm-pcl@64px.json")
    assert record.data.details["unreadable"]["count"] == 1
    assert list(record.data.details["unreadable"]["files"]) == ["JPEGImages/000004.jpg"]
    assert "1 unreadable images skipped: JPEGImages/000004.jpg" in capsys.readouterr().out


def test_skipped_images_do_not_shift_the_labels(voc):
    """Without images 2 and 30: the same as giving the SVM the remaining rows and labels by hand, image by image."""
    data = read_voc(voc)
    features = np.random.default_rng(0).standard_normal((36, 8)).astype(np.float32)
    kept = np.array([i for i in range(36) if i not in (2, 30)])
    rule = PROTOCOLS["pcl"].rule
    by_hand = []
    for split in ("trainval", "test"):
        pairs = zip(data.rows[split], data.labels[split], strict=True)
        pairs = [(features[row], labels) for row, labels in pairs if row not in (2, 30)]
        by_hand += [np.stack(column) for column in zip(*pairs, strict=True)]
    assert evaluate_svms(data, features[kept], kept, rule, Solver()) == svm_scores(*by_hand, rule)


def spoil_nothing(voc):
    pass


def remove(path):
    return lambda voc: (voc / path).unlink()


def rewrite(path, change):
    return lambda voc: (voc / path).write_text(change((voc / path).read_text()))


CAT = "ImageSets/Main/cat_test.txt"
FAULTS = {
    "listed image absent": (remove("JPEGImages/000030.jpg"), [], ["bird_test.txt", "000030.jpg"]),
    "list absent": (remove(CAT), [], ["cat_test.txt", "both splits"]),
    "list empty": (rewrite(CAT, lambda text: ""), [], ["cat_test.txt", "empty"]),
    "label unknown": (rewrite(CAT, lambda text: text.replace("-1", "-2", 1)), [], ["cat_test.txt:"]),
    "image twice": (rewrite(CAT, lambda text: text + text.splitlines()[0]), [], ["cat_test.txt:13"]),
    "lists disagree": (rewrite(CAT, lambda text: text.split("\n", 1)[1]), [], ["cat_test.txt", "bird_test.txt"]),
    "no data": (spoil_nothing, ["--data", "/nowhere"], ["/nowhere", "no VOC2007"]),
    "no checkpoint": (spoil_nothing, ["--checkpoint", "absent.pth"], ["absent.pth", "no such checkpoint"]),
    "unknown protocol": (spoil_nothing, ["--protocol", "best"], ["best", "pcl, vissl"]),
    "unknown shots": (spoil_nothing, ["--protocol", "lowshot-pcl", "--shots", "3"], ["--shots 3", "1, 2, 4, 8, 16"]),
    "unknown argument": (spoil_nothing, ["--nonsense"], ["--nonsense"]),
    "map too small for the stage": (
        spoil_nothing,
        ["--protocol", "vissl", "--stage", "res4", "--image-px", "32"],
        ["res4", "side 2", "larger image"],
    ),
    "resize below crop": (spoil_nothing, ["--resize-px", "50"], ["64 px with resize 50"]),
    "share above one": (spoil_nothing, ["--max-bad-share", "2"], ["--max-bad-share", "0 to 1"]),
    "negative workers": (spoil_nothing, ["--workers", "-1"], ["--workers"]),
    "unknown device": (spoil_nothing, ["--device", "tpu"], ["tpu"]),
    "output folder is a file": (spoil_nothing, ["--output-dir", __file__], [__file__, "cannot be written"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_and_leave_nothing(voc, tmp_path, capsys, fault):
    spoil, more, parts = FAULTS[fault]
    spoil(voc)
    out = tmp_path / "out"
    assert_one_line_error(capsys, main(arguments(voc, out, *more)), *parts)
    assert files_below(out) == []


def test_absent_gpu_is_one_line(voc, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code = main(arguments(voc, tmp_path / "out", "--device", "cuda"))
    assert_one_line_error(capsys, code, "'cuda' was asked for")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["--checkpoint", "--data", "--output-dir"])
def test_required_arguments_are_named(voc, tmp_path, capsys, missing):
    given = arguments(voc, tmp_path / "out")
    at = given.index(missing)
    assert_one_line_error(capsys, main(given[:at] + given[at + 2 :]), f"{missing} is required")


RUN_SCRIPTS = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script]
    sys.path.insert(0, "the script's own folder")
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(end.code)
    del sys.path[0]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("adco", "transfer")]:
        del sys.modules[name]
"""


def test_scripts_run_from_anywhere_and_use_their_own_checkout(tmp_path):
    """A copy of the checkout with another word for `error` is what runs, whatever is installed beside it."""
    for room in ("adco", "transfer"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    errors = tmp_path / "adco" / "utils" / "errors.py"
    errors.write_text(errors.read_text().replace('f"error: ', 'f"copied: '))
    scripts = [
        tmp_path / "transfer" / name for name in ("voc07.py", "knn.py", "linear.py", "imagenet.py", "places205.py")
    ]
    run = subprocess.run([sys.executable, "-c", RUN_SCRIPTS, *scripts], cwd="/", capture_output=True, text=True)
    assert run.stdout.split() == ["2"] * 5, run.stderr[-2000:]
    assert run.stderr == 5 * "copied: --checkpoint is required; see --help\n"
