"""VOC2007's image classification: its images and labels, and whether a copy is the official one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adco.data.datasets.annotations import voc_labels
from adco.data.datasets.check import OFFICIAL
from adco.data.datasets.layouts import VOC_CLASSES as CLASSES
from adco.data.datasets.layouts import VOC_LISTS, find_voc2007, voc_image_path, voc_list_path
from adco.utils.errors import UserError
from transfer.features.reading import ImageList

OFFICIAL_IMAGES = {split: OFFICIAL[f"VOC2007 {split}"][0] for split in ("train", "val", "trainval", "test")}


@dataclass(frozen=True)
class Voc:
    """VOC2007's image lists.

    Attributes:
        root: the folder VOC2007.
        classes: the C classes that have lists.
        ids: every image of the splits, sorted.
        rows: split -> (N,) positions in `ids` of its images.
        labels: split -> (N, C) int8, 1 present, -1 absent, 0 difficult.
        fingerprint: sha256 of the lists' names and contents.
    """

    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    rows: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    fingerprint: str

    def images(self) -> ImageList:
        """The image files, in the order of `ids`."""
        return ImageList(self.root, tuple(str(voc_image_path(Path(), name)) for name in self.ids), "voc07")

    def describe(self) -> dict[str, object]:
        """The data's part of a record; `official` only when the classes and all counts are VOC2007's own."""
        counts = {split: len(rows) for split, rows in self.rows.items()}
        official = self.classes == CLASSES and all(count == OFFICIAL_IMAGES[split] for split, count in counts.items())
        trained = [rows for split, rows in self.rows.items() if split != "test"]
        both = len(np.intersect1d(np.concatenate(trained), self.rows["test"]))
        content: dict[str, object] = {"name": "VOC2007", "fingerprint": self.fingerprint, "official": official}
        content |= {f"{split}_images": count for split, count in counts.items()}
        content |= {f"{split}_official": OFFICIAL_IMAGES[split] for split in counts}
        return content | {"classes": len(self.classes), "images_in_both_splits": both}


def read_voc(data: Path, splits: Sequence[str] = ("trainval", "test")) -> Voc:
    """Read the lists CLASS_SPLIT.txt of VOC2007.

    Args:
        data: VOC2007, VOCdevkit, or the folder that contains one of them.
        splits: which lists; `test` must be one of them.

    Raises:
        UserError: a list is missing or has an invalid line, the lists of a split disagree, or an image is missing.
    """
    root = find_voc2007(data)
    classes = [name for name in CLASSES if any(voc_list_path(root, f"{name}_{split}").exists() for split in splits)]
    if not classes:
        expected = ", ".join(f"aeroplane_{split}.txt" for split in splits)
        raise UserError(f"{root / VOC_LISTS}: no class lists; expected {expected} and so on")
    digest, names, labels = hashlib.sha256(), {}, {}
    for split in splits:
        columns = []
        for name in classes:
            path = voc_list_path(root, f"{name}_{split}")
            by_image = _read_list(path, digest)
            if names.setdefault(split, list(by_image)) != list(by_image):
                raise UserError(
                    f"{path}: lists other images than {classes[0]}_{split}.txt; the lists of a split must agree"
                )
            columns.append(list(by_image.values()))
        labels[split] = np.array(columns, dtype=np.int8).T
        for name in names[split]:
            image = voc_image_path(root, name)
            if not os.path.isfile(image):
                raise UserError(
                    f"{voc_list_path(root, f'{classes[0]}_{split}')}: lists {name}, but {image} does not exist"
                )
    ids = tuple(sorted({name for listed in names.values() for name in listed}))
    position = {name: i for i, name in enumerate(ids)}
    rows = {split: np.array([position[name] for name in listed]) for split, listed in names.items()}
    return Voc(root, tuple(classes), ids, rows, labels, digest.hexdigest())


def _read_list(path: Path, digest: hashlib._Hash) -> dict[str, int]:
    """The labels of a class list by image, in its order; its name and bytes are added to `digest`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the list cannot be read ({error.strerror}); every class needs both splits") from error
    digest.update(f"{path.name}\0".encode() + content)
    return voc_labels(path, content)


def say_what_data(voc: Voc) -> None:
    """Print the image counts, and a warning when these are not the official splits."""
    content = voc.describe()
    counts = " and ".join(f"{len(rows)} {split}" for split, rows in voc.rows.items())
    print(f"VOC2007: {counts} images")
    if not content["official"]:
        official = " and ".join(f"{OFFICIAL_IMAGES[split]} {split}" for split in voc.rows)
        print(f"NOT the official VOC2007 ({official}, 20 classes; {len(voc.classes)} here): no published row compares")
    if content["images_in_both_splits"]:
        print(f"WARNING: {content['images_in_both_splits']} images are trained on and in test: the score is too good")
