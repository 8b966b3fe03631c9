"""transfer/voc.py: reading VOC2007's lists."""

import numpy as np
import pytest

from tests.transfer.data import COLOURS
from transfer.voc import CLASSES, OFFICIAL_IMAGES, read_voc


@pytest.mark.parametrize("up", [0, 1, 2])
def test_data_may_be_voc2007_or_what_holds_it(voc, up):
    data = read_voc([voc, *voc.parents][up])
    assert data.classes == ("bird", "cat", "dog") and len(data.ids) == 36
    assert {split: labels.shape for split, labels in data.labels.items()} == {"trainval": (24, 3), "test": (12, 3)}


def test_labels_are_those_of_the_lists(voc):
    data = read_voc(voc)
    for split in ("trainval", "test"):
        for c, name in enumerate(data.classes):
            lines = (voc / "ImageSets" / "Main" / f"{name}_{split}.txt").read_text().splitlines()
            expected = [(line.split()[0], int(line.split()[1])) for line in lines]
            ids = [data.ids[row] for row in data.rows[split]]
            assert list(zip(ids, data.labels[split][:, c].tolist(), strict=True)) == expected
    assert set(np.unique(data.labels["test"])) == {-1, 0, 1}


def test_official_only_with_both_counts_and_all_classes(voc):
    description = read_voc(voc).describe()
    assert description["official"] is False
    assert (description["trainval_images"], description["trainval_official"]) == (24, 5011)
    assert (description["test_images"], description["test_official"]) == (12, 4952)
    whole = read_voc(voc)
    object.__setattr__(whole, "classes", CLASSES)
    object.__setattr__(
        whole, "rows", {split: np.arange(count) for split, count in OFFICIAL_IMAGES.items() if split in whole.rows}
    )
    assert whole.describe()["official"] is True
    whole.rows["test"] = whole.rows["test"][:-1]
    assert whole.describe()["official"] is False


def test_fingerprint_follows_the_lists(voc):
    before = read_voc(voc).fingerprint
    assert read_voc(voc).fingerprint == before
    path = voc / "ImageSets" / "Main" / "dog_test.txt"
    path.write_text(path.read_text().replace(" 1\n", " 0\n", 1))
    assert read_voc(voc).fingerprint != before


def test_an_image_in_both_splits_is_reported(voc, capsys):
    for name in COLOURS:
        path = voc / "ImageSets" / "Main" / f"{name}_test.txt"
        path.write_text("000003 -1\n" + path.read_text())
    assert read_voc(voc).describe()["images_in_both_splits"] == 1
