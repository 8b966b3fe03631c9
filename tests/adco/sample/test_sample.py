"""The drawn sample: same seed, same bytes; every layout complete, boxes, outlines and flags true to the pictures."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adco.sample import MARKER, UNFINISHED, make_sample
from adco.sample.layouts import PLACES_IMAGES, coco_categories, draw, jobs, make_folders
from adco.sample.objects import CLASSES, Sprite
from adco.sample.outline import area, bounding_box, polygons, run_lengths
from adco.sample.scene import compose
from adco.utils.errors import UserError
from tools.make_sample import main

VOC_SETS = {"VOC2007": ("train", "val", "trainval", "test"), "VOC2012": ("train", "val", "trainval")}


def fingerprint(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "world"
    summary = make_sample(out, seed=7, images=100)
    assert not summary.already_there
    assert sum(summary.counts.values()) == len(list(out.rglob("*.jpg"))) == 230
    return out


def voc_objects(year: Path, identity: str) -> list[dict]:
    root = ET.parse(year / "Annotations" / f"{identity}.xml").getroot()
    assert root.findtext("folder") == year.name
    assert root.findtext("filename") == f"{identity}.jpg"
    return [
        {
            "name": thing.findtext("name"),
            "truncated": int(thing.findtext("truncated")),
            "difficult": int(thing.findtext("difficult")),
            "pose": thing.findtext("pose"),
            "box": [int(thing.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")],
        }
        for thing in root.findall("object")
    ]


# ------------------------------------------------------------------------------------------------ same seed, same bytes


def test_same_seed_gives_the_same_bytes_and_another_seed_other_ones(tmp_path, sample):
    again = make_sample(tmp_path / "again", seed=7, images=100, workers=2)
    assert fingerprint(again.out) == fingerprint(sample)
    first = jobs(100)[::23]
    make_folders(tmp_path / "other", first)
    for job in first:
        draw(tmp_path / "other", 8, job)
        assert (tmp_path / "other" / job.path).read_bytes() != (sample / job.path).read_bytes(), job


def test_a_larger_sample_begins_with_the_smaller_one():
    small, large = jobs(100), set(jobs(260))
    assert len(set(small)) == len(small)
    assert set(small) < large


def test_no_two_pictures_are_the_same(sample):
    prints = [digest for name, digest in fingerprint(sample).items() if name.endswith(".jpg")]
    assert len(set(prints)) == len(prints)


# ------------------------------------------------------------------------------------------------------------- layouts


def test_imagenet_has_every_class_in_both_sets(sample):
    for subset, each in (("train", 5), ("val", 1)):
        folders = sorted(path for path in (sample / "imagenet" / subset).iterdir())
        assert [path.name for path in folders] == sorted(CLASSES)
        for folder in folders:
            pictures = [Image.open(path) for path in folder.glob("*.jpg")]
            assert len(pictures) == each
            assert all(picture.mode == "RGB" and 100 <= max(picture.size) <= 160 for picture in pictures)


@pytest.mark.parametrize("year", VOC_SETS)
def test_voc_lists_pictures_and_annotations_agree(sample, year):
    folder = sample / "VOCdevkit" / year
    listed = {}
    for subset in VOC_SETS[year]:
        listed[subset] = (folder / "ImageSets" / "Main" / f"{subset}.txt").read_text().split()
        assert listed[subset] == sorted(set(listed[subset]))
    assert sorted(listed["train"] + listed["val"]) == listed["trainval"]
    assert listed["train"] and listed["val"]
    everything = listed["trainval"] + listed.get("test", [])
    assert sorted(everything) == sorted(path.stem for path in (folder / "JPEGImages").iterdir())
    assert sorted(everything) == sorted(path.stem for path in (folder / "Annotations").iterdir())
    assert (folder / "ImageSets" / "Main" / "test.txt").exists() == (year == "VOC2007")


@pytest.mark.parametrize("year", VOC_SETS)
def test_voc_class_files_follow_from_the_annotations(sample, year):
    folder = sample / "VOCdevkit" / year
    seen = set()
    for subset in VOC_SETS[year]:
        objects = {
            identity: voc_objects(folder, identity)
            for identity in (folder / "ImageSets" / "Main" / f"{subset}.txt").read_text().split()
        }
        for kind in CLASSES:
            expected = []
            for identity, things in objects.items():
                difficult = [thing["difficult"] for thing in things if thing["name"] == kind]
                flag = -1 if not difficult else (0 if all(difficult) else 1)
                expected.append(f"{identity} {flag:2d}")
                seen.add(flag)
            assert (folder / "ImageSets" / "Main" / f"{kind}_{subset}.txt").read_text().splitlines() == expected
    assert seen >= {-1, 1}


def test_voc_boxes_lie_in_the_image_and_every_flag_occurs(sample):
    things = []
    for year in VOC_SETS:
        folder = sample / "VOCdevkit" / year
        for path in sorted((folder / "JPEGImages").iterdir()):
            width, height = Image.open(path).size
            found = voc_objects(folder, path.stem)
            assert found, path
            for thing in found:
                x0, y0, x1, y1 = thing["box"]
                assert 1 <= x0 <= x1 <= width, (path, thing)
                assert 1 <= y0 <= y1 <= height, (path, thing)
                assert thing["name"] in CLASSES
                things.append(thing | {"edge": x0 == 1 or y0 == 1 or x1 == width or y1 == height})
    flags = {(thing["truncated"], thing["difficult"]) for thing in things}
    assert flags == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert any(thing["edge"] for thing in things)
    assert any(thing["truncated"] and not thing["edge"] for thing in things), "nothing is occluded"
    assert {thing["name"] for thing in things} == set(CLASSES)
    assert {thing["pose"] for thing in things} == {"Left", "Right", "Frontal", "Unspecified"}


def test_coco_loads_and_its_areas_and_boxes_fit_its_masks(sample):
    coco_api = pytest.importorskip("pycocotools.coco", reason="comes with detectron2")
    crowds, ids = 0, set()
    for subset in ("train", "val"):
        coco = coco_api.COCO(sample / "coco" / "annotations" / f"instances_{subset}2017.json")
        for image in coco.dataset["images"]:
            assert Image.open(sample / "coco" / f"{subset}2017" / image["file_name"]).size == (
                image["width"],
                image["height"],
            )
            assert int(Path(image["file_name"]).stem) == image["id"] not in ids
            ids.add(image["id"])
        for note in coco.dataset["annotations"]:
            mask, (x, y, w, h) = coco.annToMask(note), note["bbox"]
            crowds += note["iscrowd"]
            slack = 0 if note["iscrowd"] else max(3, 0.02 * note["area"])
            assert abs(int(mask.sum()) - note["area"]) <= slack, note
            rows, columns = np.nonzero(mask)
            assert [x, y, w, h] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    assert crowds > 0


def test_coco_categories_are_the_real_ones():
    spec = importlib.util.find_spec("detectron2")
    if spec is None:
        pytest.skip("detectron2 is not installed")
    # run as a file: importing the package that it lies in needs an older Pillow
    meta = runpy.run_path(str(Path(spec.origin).parent / "data" / "datasets" / "builtin_meta.py"))
    real = {entry["id"]: entry["name"] for entry in meta["COCO_CATEGORIES"] if entry["isthing"]}
    assert {category["id"]: category["name"] for category in coco_categories()} == real


def test_places_lists_name_existing_pictures_and_stable_labels(sample):
    listed = []
    for subset in ("train", "val"):
        text = (sample / "places205" / "trainvalsplit_places205" / f"{subset}_places205.csv").read_text()
        listed += [(subset, *line.split(" ")) for line in text.splitlines()]
    scenes = sorted({path.split("/")[1] for _, path, _ in listed})
    assert len(scenes) == 8
    for _, path, label in listed:
        letter, scene, _ = path.split("/")
        assert (sample / PLACES_IMAGES / path).is_file()
        assert letter == scene[0]
        assert int(label) == scenes.index(scene)
    assert len({path for _, path, _ in listed}) == len(listed) == 30


# ------------------------------------------------------------------------------------------------- outlines and flags


def rasterised(outlines: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies within any outline, by counting crossings: slow and plain."""
    inside = np.zeros(shape, bool)
    for loop in outlines:
        odd = np.zeros(shape, bool)
        for (xa, ya), (xb, yb) in zip(loop, np.roll(loop, -1, 0), strict=True):
            for row in range(shape[0]):
                if (ya > row + 0.5) != (yb > row + 0.5):
                    at = xa + (row + 0.5 - ya) / (yb - ya) * (xb - xa)
                    odd[row] ^= np.arange(shape[1]) + 0.5 < at
        inside |= odd
    return inside


def test_outlines_of_boxes_are_exact_and_holes_are_filled():
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:14] = True
    mask[5:7, 6:9] = False
    mask[12:19, 20:30] = True
    outlines = polygons(mask)
    assert [len(loop) for loop in outlines] == [4, 4]
    assert area(outlines) == 6 * 10 + 7 * 10
    assert bounding_box(outlines) == [4, 3, 26, 16]
    mask[5:7, 6:9] = True
    np.testing.assert_array_equal(rasterised(outlines, mask.shape), mask)


def test_the_outline_of_a_disc_stays_within_a_pixel_of_it():
    y, x = np.mgrid[:60, :60]
    mask = (x - 30) ** 2 + (y - 28) ** 2 < 24**2
    outlines = polygons(mask)
    assert len(outlines) == 1
    assert len(outlines[0]) < 80
    assert area(outlines) == pytest.approx(mask.sum(), rel=0.02)
    assert (rasterised(outlines, mask.shape) ^ mask).sum() < 0.05 * mask.sum()


def test_pieces_that_touch_at_a_corner_only_are_separate_outlines():
    mask = np.zeros((8, 8), bool)
    mask[1:4, 1:4] = mask[4:7, 4:7] = True
    outlines = polygons(mask)
    assert len(outlines) == 2
    assert area(outlines) == 18


@pytest.mark.parametrize("corner", [False, True])
def test_run_lengths_go_down_the_columns_and_begin_with_zeros(corner):
    mask = np.zeros((3, 4), bool)
    mask[1:, 1] = mask[0, 2] = True
    mask[0, 0] = corner
    runs = run_lengths(mask)
    assert runs["size"] == [3, 4]
    assert runs["counts"] == ([0, 1, 3, 3, 5] if corner else [4, 3, 5])
    values = np.repeat(np.arange(len(runs["counts"])) % 2, runs["counts"])
    np.testing.assert_array_equal(values.reshape(4, 3).T.astype(bool), mask)


def square(left: int, top: int, side: int, name: str = "cat") -> Sprite:
    return Sprite(np.ones((side, side, 4), np.float32), left, top, name, "Left")


def test_nearer_objects_hide_farther_ones_and_the_flags_say_so():
    far, near = square(10, 10, 20, "dog"), square(22, 10, 20)
    _, (front, back) = compose(np.zeros((60, 80, 3), np.float32), [far, near])
    assert (front.name, front.box, front.share, front.truncated, front.difficult) == ("cat", (22, 10, 42, 30), 1, 0, 0)
    assert (back.name, back.box, back.truncated, back.difficult) == ("dog", (10, 10, 22, 30), True, False)
    assert back.share == pytest.approx(12 / 20)


def test_an_object_cut_by_the_edge_is_truncated_and_mostly_hidden_ones_are_difficult_or_gone():
    _, seen = compose(np.zeros((60, 80, 3), np.float32), [square(-10, 5, 20)])
    assert seen[0].box == (0, 5, 10, 25)
    assert seen[0].truncated
    _, seen = compose(np.zeros((60, 80, 3), np.float32), [square(10, 10, 40, "dog"), square(22, 10, 40)])
    assert [thing.difficult for thing in seen] == [False, True]
    ground, seen = compose(np.zeros((60, 80, 3), np.float32), [square(10, 10, 40, "dog"), square(11, 10, 40)])
    assert [thing.name for thing in seen] == ["cat"]
    assert ground[20, 10].max() == 0, "a thing that is not annotated was painted"


# -------------------------------------------------------------------------------------------------------- the command


def test_a_finished_sample_is_found_again_and_nothing_is_written(sample, capsys):
    before = {path: path.stat().st_mtime_ns for path in sample.rglob("*")}
    assert main([str(sample), "--seed", "7", "--images", "100"]) == 0
    assert "already there" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in sample.rglob("*")}


def test_an_interrupted_sample_is_started_over(tmp_path, sample, monkeypatch):
    out = tmp_path / "half"
    drawn = []

    def stop_early(out, seed, job):
        drawn.append(job)
        if len(drawn) > 12:
            raise KeyboardInterrupt
        return draw(out, seed, job)

    monkeypatch.setattr("adco.sample.draw", stop_early)
    with pytest.raises(KeyboardInterrupt):
        make_sample(out, seed=99, images=140)
    monkeypatch.undo()
    assert (out / UNFINISHED).exists() and not (out / MARKER).exists()
    make_sample(out, seed=7, images=100)
    assert fingerprint(out) == fingerprint(sample)
    assert json.loads((out / MARKER).read_text()) == {"schema": 1, "seed": 7, "images": 100}


def one_error_line(capsys, *argv: object) -> str:
    """Run the command, which must fail with exit code 2 and say why in one line."""
    assert main([str(argument) for argument in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("images", [0, -5, 99])
def test_too_few_images_are_refused(tmp_path, capsys, images):
    assert f"--images {images}" in one_error_line(capsys, tmp_path / "out", "--seed", 1, "--images", images)
    assert not (tmp_path / "out").exists()


def test_bad_seeds_and_workers_are_refused(tmp_path, capsys):
    assert "--seed -1" in one_error_line(capsys, tmp_path / "out", "--seed", -1)
    assert "--workers 0" in one_error_line(capsys, tmp_path / "out", "--seed", 1, "--workers", 0)


def test_folders_with_anything_else_are_refused_and_left_alone(tmp_path, sample, capsys):
    assert "another sample" in one_error_line(capsys, sample, "--seed", 8, "--images", 100)
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "not empty" in one_error_line(capsys, tmp_path, "--seed", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert "thesis.txt" in one_error_line(capsys, tmp_path / "thesis.txt", "--seed", 1)
    assert "cannot be written" in one_error_line(capsys, tmp_path / "thesis.txt" / "below", "--seed", 1)


def test_a_full_disc_is_one_line(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        make_sample(tmp_path / "out", seed=1, images=100)
    assert not (tmp_path / "out" / MARKER).exists()
