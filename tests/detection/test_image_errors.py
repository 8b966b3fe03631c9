"""An image that cannot be read is named in one line, wherever detectron2 reads it."""

from __future__ import annotations

import logging

import pytest
from PIL import Image

import detection  # noqa: F401  (patches before detectron2)

# isort: split
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, build_detection_test_loader, detection_utils
from detectron2.data.datasets.pascal_voc import CLASS_NAMES, load_voc_instances

from adco.utils.errors import UserError, command
from detection.register import setup_environment
from tests.detection.helpers import SIZE, make_voc

CUT, EMPTY, TEXT = (lambda content: content[: len(content) // 2]), (lambda content: b""), (lambda content: b"<html>")


@pytest.fixture
def entries(tmp_path):
    setup_environment()
    return load_voc_instances(str(make_voc(tmp_path) / "VOC2007"), "trainval", CLASS_NAMES)


def spoil(entry, how):
    with open(entry["file_name"], "rb+") as file:
        content = how(file.read())
        file.seek(0)
        file.truncate()
        file.write(content)


def mapper(training=True):
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    return DatasetMapper(cfg, training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("how", "reason"), [(CUT, "truncated"), (EMPTY, "cannot identify"), (TEXT, "cannot identify")])
def test_training_and_evaluation_name_the_file(entries, how, reason, training):
    spoil(entries[2], how)
    with pytest.raises(UserError, match=f"800002.jpg: this image cannot be decoded .*{reason}.*--decode all"):
        mapper(training)(entries[2])
    assert mapper(training)(entries[3])["image"].shape[0] == 3


def test_an_image_of_another_size_than_its_annotation(entries):
    Image.new("RGB", (SIZE[0] + 1, SIZE[1])).save(entries[2]["file_name"])
    with pytest.raises(UserError, match="800002.jpg, got .121, 96., expect .120, 96.. Please check"):
        mapper()(entries[2])


def test_a_loaders_process_reports_it_in_one_line(entries, capfd):
    spoil(entries[2], CUT)
    loader = build_detection_test_loader(entries, mapper=mapper(), num_workers=1)
    assert command(lambda argv: [None for _ in loader] and 0)([]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {entries[2]['file_name']}: this image cannot be decoded")


def test_what_is_reported_in_one_line_has_no_traceback_in_the_log(entries, caplog):
    log = logging.getLogger("detectron2.engine.train_loop")
    for error in (UserError("x.jpg: broken"), FloatingPointError("loss is NaN"), KeyError("a bug")):
        try:
            raise error
        except Exception:
            log.exception("Exception during training: %s", type(error).__name__)
    assert [entry.getMessage().split()[-1] for entry in caplog.records] == ["KeyError"]


def test_once_is_enough(entries):
    before = detection_utils.read_image
    setup_environment()
    assert detection_utils.read_image is before
