"""Suites as data: the shipped ones are what they say; data are found and fingerprinted; costs are measured ones."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from adco.data.datasets.locate import find_all, linked
from adco.evaluation.records import Predictions, Record, load_record
from adco.suite import estimates
from adco.suite.results import publish
from adco.suite.stages import Stage, load_suite, only
from adco.utils.errors import UserError
from tests import ROOT
from transfer import throughput
from transfer.classifier.protocols import IMAGENET, PLACES205, VOC_ADCO
from transfer.svm.protocols import PROTOCOLS

RECIPES = {recipe.name: recipe for recipe in (*IMAGENET.values(), *PLACES205.values(), VOC_ADCO)}
SHIPPED = [stage for name in ("table4", "quick") for stage in load_suite(name).stages]


@pytest.mark.parametrize("stage", SHIPPED, ids=lambda stage: stage.name)
def test_shipped_stages_name_real_tools_and_protocols_with_their_own_settings(stage):
    assert (ROOT / stage.tool).is_file()
    for protocol in stage.protocols(50):
        kind = protocol.partition("/")[0]
        if kind == "detection":
            path = ROOT / stage.config
            solver = yaml.safe_load(path.read_text())["SOLVER"]
            assert stage.standard["iterations"] == solver["MAX_ITER"]
            depth = 18 if "R_18" in path.stem else 50
            assert path.stem.removesuffix("_adco") == stage.protocols(depth)[0].partition("/")[2]
        elif protocol in RECIPES:
            assert stage.standard["epochs"] == RECIPES[protocol].epochs
        else:
            known = {found.name for found in PROTOCOLS.values()} | {"knn/k20-t0.07", "knn/k200-t0.07"}
            assert protocol in known | {"linear/cached-features"}


@pytest.mark.parametrize("stage", [s for s in SHIPPED if not s.config], ids=lambda stage: stage.name)
def test_a_changed_setting_makes_the_name_that_the_tool_gives(stage):
    made = replace(stage, settings={"image_px": 64} | ({"epochs": 2} if stage.takes("epochs") else {}))
    for before, after in zip(stage.protocols(18), made.protocols(18), strict=True):
        own = RECIPES[before].shortened(2, None).name if before in RECIPES else before
        assert after == f"{own}@64px"


def test_the_protocols_own_settings_change_no_name():
    suite = load_suite("table4", ["image_px=300", "places205.epochs=14", "detection-voc.iterations=24000"])
    names = {stage.name: stage.protocols(50)[0] for stage in suite.stages}
    assert names["voc07-linear"] == "voc07-linear/adco"
    assert names["places205"] == "places205-linear/vissl@300px"
    assert names["detection-voc"] == "detection/pascal_voc_R_50_C4_24k@300px"


def write(path: Path, **content) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_file_may_change_another_suite(tmp_path):
    stages = {"places205": {"settings": {"epochs": 1}}, "detection-coco": None, "detection-voc": None,
              "own": {"tool": "transfer/knn.py", "data": ["imagenet"], "records": ["knn/k5-t0.07"]}}  # fmt: skip
    suite = load_suite(write(tmp_path / "mine.yaml", base="table4", settings={"image_px": 96}, stages=stages))
    assert suite.name == "mine"
    names = [stage.name for stage in suite.stages]
    assert names[-1] == "own" and "detection-coco" not in names and names[0] == "voc07-svm"
    by_name = {stage.name: stage for stage in suite.stages}
    assert by_name["places205"].protocols(18) == ("places205-linear/vissl-1ep@96px",)
    assert by_name["own"].protocols(18) == ("knn/k5-t0.07",)
    stages["voc07-svm"] = {"settings": {"image_px": 32}}
    suite = load_suite(write(tmp_path / "mine.yaml", base="table4", settings={"image_px": 96}, stages=stages))
    names = {stage.name: stage.protocols(18)[-1] for stage in suite.stages}
    assert names["voc07-svm"] == "voc07-svm/pcl@32px" and names["voc07-lowshot"] == "voc07-lowshot/pcl@96px"
    assert [stage.name for stage in only(suite, ["own", "voc07-svm"]).stages] == ["voc07-svm", "own"]


@pytest.mark.parametrize(
    ("stages", "reported"),
    [
        ({"a": {"tol": "x"}}, r"stages\.a: unknown key 'tol'; did you mean tool\?"),
        ({"a": {"tool": "x", "data": ["imagenet"]}}, r"stages\.a: records is missing"),
        ({"a": {"tool": "x", "data": ["imagnet"], "records": ["r"]}}, "'imagnet' is not a data set; choose voc2007"),
        ({"a": {"tool": "x", "data": "imagenet", "records": ["r"]}}, "expected a list of texts"),
        ({"A b": {"tool": "x", "data": ["imagenet"], "records": ["r"]}}, "small letters, digits and dashes"),
        (
            {"a": {"tool": "x", "data": ["imagenet"], "records": ["r"], "settings": {"epochs": 1}}},
            "a has no epochs",
        ),
        ({"a": {"tool": "x", "data": ["imagenet"], "records": ["r{w}"]}}, r"records: 'r\{w\}': w is none of image_px"),
        ([], "expected a mapping"),
    ],
)
def test_mistakes_in_a_suite_name_file_stage_and_key(stages, reported, tmp_path):
    with pytest.raises(UserError, match=reported) as caught:
        load_suite(write(tmp_path / "mine.yaml", stages=stages))
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("setting", "reported"),
    [
        ("epochs", "expected KEY=NUMBER"),
        ("epochs=0", "whole number above 0"),
        ("px=3", "unknown setting 'px'"),
        ("knm.epochs=3", "no stage 'knm'"),
        ("knn.epochs=3", "knn has no epochs"),
    ],
)
def test_mistakes_in_a_setting(setting, reported):
    with pytest.raises(UserError, match=reported):
        load_suite("quick", [setting])


def test_a_suite_that_does_not_exist_names_those_that_do():
    with pytest.raises(UserError, match="choose quick, table4, or a YAML file"):
        load_suite("table5")
    with pytest.raises(UserError, match="--stages coco: quick has knn"):
        only(load_suite("quick"), ["coco"])


# Data sets ---------------------------------------------------------------------------------------


def image(path: Path, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((size, size), 60).save(path)
    return path


def folders(root: Path) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            image(root / split / f"class{i % 2}" / f"{i}.png")
    return root


def voc(root: Path, year: str) -> Path:
    lists = root / f"VOC{year}" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, ids in (("trainval", "01\n02\n"), ("test", "03\n")):
        (lists / f"{split}.txt").write_text(ids)
        (lists / f"cat_{split}.txt").write_text("".join(f"{name} 1\n" for name in ids.split()))
    for name in ("01", "02", "03"):
        image(root / f"VOC{year}" / "JPEGImages" / f"{name}.jpg")
    return root / f"VOC{year}"


def coco(root: Path) -> Path:
    for split in ("train", "val"):
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text("{}")
        image(root / f"{split}2017" / "1.jpg")
    return root


@pytest.fixture
def world(tmp_path) -> Path:
    root = tmp_path / "data"
    folders(root / "deeper" / "imagenet")
    folders(root / "Places205")
    voc(root / "VOCdevkit", "2007")
    coco(root / "COCO-2017")
    return root


def test_data_sets_are_found_by_layout_with_their_counts_and_links_for_detectron2(world, tmp_path):
    wanted = ("voc2007", "voc2012", "coco", "places205", "imagenet")
    found, missing = find_all(world, {}, wanted)
    places = {name: item.path.relative_to(world).as_posix() for name, item in found.items()}
    assert places == {
        "voc2007": "VOCdevkit/VOC2007", "coco": "COCO-2017", "places205": "Places205", "imagenet": "deeper/imagenet",
    }  # fmt: skip
    assert found["imagenet"].counts == {"train": 4, "val": 2}
    assert found["voc2007"].counts == {"trainval": 2, "test": 1}
    assert found["coco"].counts == {"train": 1, "val": 1}
    assert missing == {
        "voc2012": f"no voc2012 below {world}, expected VOC2012 or VOCdevkit/VOC2012 with ImageSets/Main"
    }
    for _ in range(2):  # a second run finds the links there
        links = linked(found, tmp_path / "links")
    assert (links / "coco" / "annotations" / "instances_val2017.json").is_file()
    assert (links / "VOC2007" / "JPEGImages").is_dir() and not (links / "VOC2012").exists()


def test_a_given_folder_goes_before_what_is_found(world, tmp_path):
    other = folders(tmp_path / "mine")
    found, _ = find_all(world, {"imagenet": other, "voc2007": world / "VOCdevkit"}, ["imagenet", "voc2007"])
    assert found["imagenet"].path == other
    assert found["voc2007"].path == world / "VOCdevkit" / "VOC2007"


def test_two_folders_that_could_be_meant_are_not_guessed_between(world):
    shutil.copytree(world / "deeper" / "imagenet", world / "more" / "imagenet")
    with pytest.raises(UserError, match="imagenet: several folders could be it .* choose with --data imagenet=FOLDER"):
        find_all(world, {}, ["imagenet"])


def test_a_folder_with_the_data_sets_name_goes_before_others_of_its_layout(world):
    folders(world / "pets")
    found, _ = find_all(world, {}, ["imagenet"])
    assert found["imagenet"].path.name == "imagenet"


@pytest.mark.parametrize(
    ("given", "reported"),
    [({"imagenet": "absent"}, "not imagenet; expected imagenet/"), ({"cifar": "."}, "not a data set; choose voc2007")],
)
def test_a_wrong_choice_of_data_is_one_line(given, reported, world):
    with pytest.raises(UserError, match=reported):
        find_all(world, {name: world / path for name, path in given.items()}, ["imagenet"])


def fingerprint(root: Path, name: str) -> str:
    return find_all(root, {}, [name])[0][name].fingerprint


CHANGES = {
    "imagenet": lambda root: image(root / "deeper" / "imagenet" / "val" / "class0" / "0.png", 9),
    "places205": lambda root: os.rename(root / "Places205/val/class0/0.png", root / "Places205/val/class1/0.png"),
    "voc2007": lambda root: (root / "VOCdevkit/VOC2007/ImageSets/Main/cat_test.txt").write_text("03 0\n"),
    "coco": lambda root: (root / "COCO-2017/annotations/instances_val2017.json").write_text("[]"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_fingerprint_is_the_same_elsewhere_and_another_after_a_change(name, world, tmp_path):
    before = fingerprint(world, name)
    moved = tmp_path / "moved"
    shutil.copytree(world, moved)
    assert fingerprint(moved, name) == before
    CHANGES[name](moved)
    assert fingerprint(moved, name) != before


# Costs -------------------------------------------------------------------------------------------

STAGE = Stage(
    "s", "t", ("imagenet",), ("p/q",), passes={"train": "epochs", "val": 10}, standard={"epochs": 3}, vectors=2
)
COUNTS = {"train": 100, "val": 20}


def record(seconds: float, hardware: str = "", train: int = 50, **settings) -> Record:
    data = {"name": "d", "fingerprint": "f", "train_images": train, "val_images": 10}
    checkpoint = {"name": "c", "sha256": "x", "arch": "resnet18"}
    return Record("p/q", {"top1": 1.0}, checkpoint, data, settings, seconds, hardware or "3 cores of a box, no GPU")


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(estimates, "_here", lambda: "a box, no GPU")


def estimate(past, rate=lambda *_: None, stage=STAGE, devices=0, trials=1):
    return estimates.estimate(stage, "resnet18", Path("d"), ("p/q",), COUNTS, trials, devices, past, rate)


def test_what_a_record_of_this_machine_took_is_scaled_by_the_pictures(here):
    found = estimate([record(60)])  # 3 * 50 + 10 * 10 images a minute; now 3 * 100 + 10 * 20
    assert found.minutes == pytest.approx(2)
    assert "records" in found.source


@pytest.mark.parametrize("past", [record(60, "8 x another GPU"), record(60, pictures_computed=0), record(60, ranks=8)])
def test_records_that_say_nothing_about_this_run_are_left_out(past, here):
    assert estimate([past]).minutes is None
    found = estimate([past], rate=lambda arch, px, data: 100.0)
    assert found.minutes == pytest.approx(500 / 100 / 60)
    assert "500 images at 100/s, measured now" in found.source


def test_a_detectors_time_comes_from_records_alone(here):
    detector = replace(STAGE, config="c.yaml", passes={})
    assert estimate([], stage=detector, rate=lambda *_: 100.0).minutes is None
    past = [record(600, gpus=0, trials=2)]
    assert estimate(past, stage=detector, trials=5).minutes == pytest.approx(25)
    assert estimate([record(600, gpus=4)], stage=detector).minutes is None


def test_disk_counts_features_and_saved_detectors():
    assert estimates.disk_bytes(STAGE, "resnet50", COUNTS, 1) == 120 * 2 * 2048 * 4
    detector = replace(STAGE, vectors=0, saves=3)
    r50_c4 = estimates.disk_bytes(detector, "resnet50", COUNTS, 2) / 6 / 8
    assert 32e6 < r50_c4 < 34e6  # detectron2's R50-C4 has 33 million parameters


def test_a_rate_is_measured_once_and_only_when_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(estimates, "RATE", tmp_path / "rate.py")
    (tmp_path / "rate.py").write_text(
        f"import sys; open({str(tmp_path / 'asked')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n'); print(12.5)"
    )
    rates = estimates.Rates("cpu", 0)
    assert [rates("resnet18", 64, Path("d")) for _ in range(3)] == [12.5] * 3
    line = "--checkpoint random:resnet18 --data d --image-px 64 --device cpu --workers 0"
    assert (tmp_path / "asked").read_text().splitlines() == [line]
    assert estimates.Rates("cpu", "auto")("resnet18", 64, Path("d")) == 12.5
    assert (tmp_path / "asked").read_text().splitlines()[1].endswith("--workers auto")
    assert estimates.Rates("cpu", 0, allowed=False)("resnet18", 64, Path("d")) is None
    (tmp_path / "rate.py").write_text("raise SystemExit(2)")
    assert estimates.Rates("cpu", 0)("resnet18", 64, Path("d")) is None


def test_the_rate_of_a_network_on_pictures(tmp_path, capsys):
    for i in range(12):
        image(tmp_path / "a" / f"{i}.png", 40)
    words = ["--checkpoint", "random:resnet18", "--data", str(tmp_path), "--image-px", "32", "--device", "cpu"]
    assert throughput.main([*words, "--workers", "0"]) == 0
    assert float(capsys.readouterr().out) > 0
    assert throughput.main([*words[:3], str(tmp_path / "absent")]) == 2


def test_a_published_record_takes_its_predictions_along(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "predictions.npz").write_bytes(b"boxes")
    found = replace(record(60), predictions=Predictions("predictions.npz", "0" * 64, "boxes"))
    target = tmp_path / "results" / "model" / "p-q.json"
    publish(found, tmp_path / "work" / "record.json", target)
    assert load_record(target) == replace(found, predictions=Predictions("p-q.npz", "0" * 64, "boxes"))
    assert (target.parent / "p-q.npz").read_bytes() == b"boxes"
