"""transfer/places205.py: both layouts of the data give the same score, and faults of the lists."""

import pytest

import transfer.places205
from adco.data.datasets.layouts import PLACES_IMAGES as IMAGES
from adco.data.datasets.layouts import PLACES_LISTS as LISTS
from adco.data.images import index_folder
from adco.evaluation.records import load_record
from tests.transfer.data import arguments, assert_one_line_error
from transfer.classifier.protocols import PLACES205, ClassifierProtocol
from transfer.places205 import read_places


def make_places(folder, root):
    """The same images in the original layout of Places205."""
    (root / LISTS).mkdir(parents=True)
    for name in ("train", "val"):
        index = index_folder(folder / name)
        lines = [f"{name}/{path} {label}\n" for path, label in zip(index.paths, index.labels, strict=True)]
        (root / LISTS / f"{name}_places205.csv").write_text("".join(lines))
    (root / IMAGES).parent.mkdir(parents=True)
    folder.rename(root / IMAGES)
    return root


def test_places_in_either_layout_gives_the_same_score(folder, tmp_path, capsys):
    wanted = ["--protocol", "vissl", "--epochs", "1", "--train-batch", "8", "--image-px", "96"]
    assert transfer.places205.main(arguments(folder, tmp_path / "a", *wanted)) == 0
    original = make_places(folder, tmp_path / "original")
    assert transfer.places205.main(arguments(original, tmp_path / "b", *wanted)) == 0
    name = "places205-linear-vissl-1ep-batch8@96px.json"
    a, b = (load_record(tmp_path / where / name) for where in "ab")
    assert a.scores == b.scores and set(a.scores) == {"top1", *(f"res{n}/top1" for n in (2, 3, 4, 5))}
    assert a.scores["top1"] == max(a.scores.values()) and a.data.official is False


PLACES_FAULTS = {
    "no list": (lambda root: (root / LISTS / "val_places205.csv").unlink(), ["val_places205.csv", "both lists"]),
    "no label": (lambda root: (root / LISTS / "val_places205.csv").write_text("a.png\n"), ["csv:1", "PATH LABEL"]),
    "empty": (lambda root: (root / LISTS / "val_places205.csv").write_text("\n"), ["empty"]),
    "absent": (lambda root: (root / LISTS / "val_places205.csv").write_text("a.png 1\n"), ["lists a.png"]),
}


@pytest.mark.parametrize("fault", PLACES_FAULTS)
def test_faults_of_places_are_one_line(folder, tmp_path, capsys, fault):
    spoil, parts = PLACES_FAULTS[fault]
    root = make_places(folder, tmp_path / "original")
    spoil(root)
    assert_one_line_error(capsys, transfer.places205.main(arguments(root, tmp_path / "out")), *parts)
    assert not (tmp_path / "out").exists()


def test_places_lists_number_their_classes(folder, tmp_path):
    train_part, val, digest = read_places(make_places(folder, tmp_path / "original"))
    assert train_part.classes == val.classes == ("0", "1", "2") and len(digest) == 64
    assert isinstance(PLACES205["vissl"], ClassifierProtocol)
