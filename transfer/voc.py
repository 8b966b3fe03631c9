"""VOC2007's image classification: which images and labels it has, and how far a copy is from the official one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adco.data.datasets.annotations import inside
from adco.utils.errors import UserError
from transfer.features.reading import ImageList

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
OFFICIAL_IMAGES = {"train": 2501, "val": 2510, "trainval": 5011, "test": 4952}


@dataclass(frozen=True)
class Voc:
    """VOC2007's image lists.

    ids: every image of trainval and test, sorted; rows[split]: (N,) the positions in `ids` of that split's images;
    labels[split]: (N, C) of 1 present, -1 absent, 0 difficult.
    """

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    rows: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    fingerprint: str

    def images(self) -> ImageList:
        return ImageList(self.root, tuple(f"JPEGImages/{name}.jpg" for name in self.ids), "voc07")

    def describe(self) -> dict[str, object]:
        """What a record says of the data; `official` only when classes and both counts are VOC2007's own."""
        counts = {split: len(rows) for split, rows in self.rows.items()}
        official = self.classes == CLASSES and all(count == OFFICIAL_IMAGES[split] for split, count in counts.items())
        trained = [rows for split, rows in self.rows.items() if split != "test"]
        both = len(np.intersect1d(np.concatenate(trained), self.rows["test"]))
        content = {"name": "VOC2007", "fingerprint": self.fingerprint, "official": official}
        content |= {f"{split}_images": count for split, count in counts.items()}
        content |= {f"{split}_official": OFFICIAL_IMAGES[split] for split in counts}
        return content | {"classes": len(self.classes), "images_in_both_splits": both}


def read_voc(data: Path, splits: Sequence[str] = ("trainval", "test")) -> Voc:
    """Read the per-class lists CLASS_SPLIT.txt of VOC2007 below `data` (VOC2007, VOCdevkit or its parent).

    Raises UserError for an absent list, a line that is none, lists that disagree, and an image that is not there.
    """
    root = find_voc(data)
    folder = root / "ImageSets" / "Main"
    classes = [name for name in CLASSES if any((folder / f"{name}_{split}.txt").exists() for split in splits)]
    if not classes:
        wanted = ", ".join(f"aeroplane_{split}.txt" for split in splits)
        raise UserError(f"{folder}: no class lists; expected {wanted} and so on")
    digest, names, labels = hashlib.sha256(), {}, {}
    for split in splits:
        columns = []
        for name in classes:
            path = folder / f"{name}_{split}.txt"
            found = read_list(path, digest)
            if names.setdefault(split, list(found)) != list(found):
                raise UserError(
                    f"{path}: lists other images than {classes[0]}_{split}.txt; the lists of a split must agree"
                )
            columns.append(list(found.values()))
        labels[split] = np.array(columns, dtype=np.int8).T
        listed = folder / f"{classes[0]}_{split}.txt"
        for name in names[split]:
            if not os.path.isfile(root / "JPEGImages" / f"{name}.jpg"):
                raise UserError(f"{listed}: lists {name}, but {root / 'JPEGImages' / name}.jpg does not exist")
    ids = tuple(sorted({name for found in names.values() for name in found}))
    position = {name: i for i, name in enumerate(ids)}
    rows = {split: np.array([position[name] for name in found]) for split, found in names.items()}
    return Voc(root, tuple(classes), ids, rows, labels, digest.hexdigest())


def find_voc(data: Path) -> Path:
    """The VOC2007 folder at or below `data`."""
    for root in (data, data / "VOC2007", data / "VOCdevkit" / "VOC2007"):
        if (root / "ImageSets" / "Main").is_dir():
            return root
    raise UserError(f"{data}: no VOC2007 in it; expected ImageSets/Main below it, VOC2007 or VOCdevkit/VOC2007")


def read_list(path: Path, digest) -> dict[str, int]:
    """A VOC list of `IMAGE LABEL` lines, label 1, 0 (difficult) or -1, in its order; its bytes go into `digest`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the list cannot be read ({error.strerror}); every class needs both splits") from error
    digest.update(f"{path.name}\0".encode() + content)
    labels = {}
    for number, line in enumerate(os.fsdecode(content).splitlines(), 1):
        if not line.strip():
            continue
        name, *label = line.split()
        if label not in (["1"], ["0"], ["-1"]) or name in labels or not inside(name):
            raise UserError(
                f"{path}:{number}: expected `IMAGE LABEL`, label 1, 0 or -1, each image once; found {line!r}"
            )
        labels[name] = int(label[0])
    if not labels:
        raise UserError(f"{path}: the list is empty")
    return labels


def say_what_data(voc: Voc) -> None:
    """Print the image counts, and plainly when these are not the official splits."""
    content = voc.describe()
    counts = " and ".join(f"{len(rows)} {split}" for split, rows in voc.rows.items())
    print(f"VOC2007: {counts} images")
    if not content["official"]:
        official = " and ".join(f"{OFFICIAL_IMAGES[split]} {split}" for split in voc.rows)
        print(f"NOT the official VOC2007 ({official}, 20 classes; {len(voc.classes)} here): no published row compares")
    if content["images_in_both_splits"]:
        print(f"WARNING: {content['images_in_both_splits']} images are trained on and in test: the score is too good")
