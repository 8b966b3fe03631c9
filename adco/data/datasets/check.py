"""Checks of a dataset's folder: counts beside the official ones, and every file that is missing or broken.

VOC07 and VOC12, COCO 2017, Places205 and ImageNet, in the layouts that detection and transfer read.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adco.data.datasets import layouts
from adco.data.datasets.annotations import check_coco_content, inside, places_list, read_bytes, read_coco, voc_objects
from adco.data.datasets.layouts import IMAGE_SUFFIXES
from adco.data.images import UnreadableImage, read_image
from adco.utils.errors import UserError

# Images (and VOC's boxes that are not difficult, COCO's annotations) of the official releases.
OFFICIAL = {
    "VOC2007 train": (2501, 6301), "VOC2007 val": (2510, 6307), "VOC2007 trainval": (5011, 12608),
    "VOC2007 test": (4952, 12032),
    "VOC2012 train": (5717, 13609), "VOC2012 val": (5823, 13841), "VOC2012 trainval": (11540, 27450),
    "COCO train2017": (118287, 860001), "COCO val2017": (5000, 36781),
    "Places205 train": (2448873, None), "Places205 val": (20500, None),
    "ImageNet train": (1281167, None), "ImageNet val": (50000, None),
}  # fmt: skip
CLASSES = {"VOC2007": 20, "VOC2012": 20, "COCO": 80, "Places205": 205, "ImageNet": 1000}


@dataclass
class Split:
    """One split of a dataset.

    Attributes:
        name: e.g. `VOC2007 test`, a key of OFFICIAL.
        images, boxes, classes: how many there are; boxes None where the dataset has none, classes None where they
            could not be counted.
        faults: a line for each file that is missing or broken.
        notes: lines on what is left out of training.
    """

    name: str
    images: int = 0
    boxes: int | None = None
    classes: int | None = None
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def official(self) -> bool:
        """Whether the numbers of images, boxes and classes are the official release's."""
        images, boxes = OFFICIAL[self.name]
        right_classes = self.classes in (None, CLASSES[self.name.split()[0]])
        return self.images == images and boxes in (None, self.boxes) and right_classes

    def describe(self) -> str:
        """`VOC2007 test: 200 of 4952 images, 642 of 12032 boxes, 20 of 20 classes`."""
        images, boxes = OFFICIAL[self.name]
        parts = [f"{self.images} of {images} images"]
        parts += [f"{self.boxes} of {boxes} boxes"] if boxes is not None else []
        parts += [f"{self.classes} of {CLASSES[self.name.split()[0]]} classes"] if self.classes is not None else []
        return f"{self.name}: {', '.join(parts)}"


def check_folder(root: Path, sample: int | None = 200) -> list[Split]:
    """Check every dataset that `root` is or contains: VOC2007, VOCdevkit, coco, places205, imagenet and the like.

    Args:
        root: a dataset's folder, or one that contains datasets.
        sample: how many images of each split are decoded, chosen at random with a fixed seed; None for all.

    Raises:
        UserError: no known dataset is there.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    splits, folders = [], sorted(path for path in root.iterdir() if path.is_dir())
    for folder in (root, *folders, *sorted((root / "VOCdevkit").glob("VOC20*"))):
        for has, check in LAYOUTS:
            if has(folder):
                splits += check(folder, sample)
    if not splits:
        raise UserError(
            f"{root}: none of VOC2007, VOC2012, coco (annotations/), Places205 (trainvalsplit_places205/), ImageNet "
            "(train/CLASS/*) is there; docs/data.md shows the layouts"
        )
    return splits


def check_voc(folder: Path, sample: int | None) -> list[Split]:
    """Check image lists, images and annotations of one year's folder, e.g. VOCdevkit/VOC2007."""
    splits = []
    for name in (name for name in OFFICIAL if name.startswith(folder.name)):
        listing = layouts.voc_list_path(folder, name.split()[1])
        if not listing.is_file():
            continue
        ids = os.fsdecode(read_bytes(listing, "image list")).split()
        split, boxes, classes, empty = Split(name, images=len(ids)), 0, set(), []
        split.faults += [f"{listing}: {identity} leads out of the folder" for identity in ids if not inside(identity)]
        ids = [identity for identity in ids if inside(identity)]
        for identity in ids:
            try:
                objects = voc_objects(layouts.voc_annotation_path(folder, identity))
            except UserError as error:
                split.faults.append(str(error))
                continue
            easy = [item.name for item in objects if not item.difficult]
            boxes += len(easy)
            classes.update(easy)
            empty += [identity for item in objects if item.empty]
        split.boxes, split.classes = boxes, len(classes)
        split.notes += [f"boxes without area, left out: {len(empty)}, the first is in {empty[0]}"] if empty else []
        split.faults += broken((layouts.voc_image_path(folder, identity) for identity in ids), sample)
        splits.append(split)
    if not splits:
        raise UserError(f"{folder}: ImageSets/Main holds no train.txt, val.txt, trainval.txt or test.txt")
    return splits


def check_coco(folder: Path, sample: int | None) -> list[Split]:
    """Check annotations/instances_{train,val}2017.json and the images they name."""
    splits = []
    for subset in layouts.COCO_SUBSETS:
        path, split = layouts.coco_annotation_path(folder, subset), Split(f"COCO {subset}", boxes=0, classes=0)
        splits.append(split)
        if not path.is_file():
            split.faults.append(f"{path}: no such annotation file")
            continue
        try:
            content = read_coco(path)
        except UserError as error:
            split.faults.append(str(error))
            continue
        faults, split.notes = check_coco_content(content)
        split.faults += [f"{path}: {line}" for line in faults]
        split.images, split.boxes, split.classes = (
            len(content[key]) for key in ("images", "annotations", "categories")
        )
        names = [image["file_name"] for image in content["images"] if inside(image.get("file_name"))]
        split.faults += broken((folder / subset / name for name in names), sample)
    return splits


def check_places205(folder: Path, sample: int | None) -> list[Split]:
    """Check trainvalsplit_places205/*.csv (lines `PATH LABEL`) and the images below data/vision/torralba/..."""
    splits = []
    for subset in ("train", "val"):
        path, split = layouts.places_list_path(folder, subset), Split(f"Places205 {subset}")
        splits.append(split)
        if not path.is_file():
            split.faults.append(f"{path}: no such list")
            continue
        try:
            names, labels = places_list(path, read_bytes(path, "list"))
        except UserError as error:
            split.faults.append(str(error))
            continue
        split.images, split.classes = len(names), len(set(labels))
        split.faults += broken((folder / layouts.PLACES_IMAGES / name for name in names), sample)
    return splits


def check_imagenet(folder: Path, sample: int | None) -> list[Split]:
    """Check train/CLASS/* and val/CLASS/*: every class of one must be in the other."""
    splits, classes = [], {}
    for subset in ("train", "val"):
        split = Split(f"ImageNet {subset}")
        splits.append(split)
        if not (folder / subset).is_dir():
            split.faults.append(f"{folder / subset}: no such folder")
            continue
        images = {}
        for entry in os.scandir(folder / subset):
            try:
                images |= {entry.name: _images(Path(entry.path))} if entry.is_dir() else {}
            except OSError as error:
                split.faults.append(f"{entry.path}: cannot be read ({error.strerror})")
        split.faults += [f"{folder / subset / name}: no images" for name, paths in images.items() if not paths]
        split.images, split.classes = sum(map(len, images.values())), len(images)
        split.faults += broken((path for paths in images.values() for path in paths), sample, present=True)
        classes[subset] = set(images)
    if len(classes) == 2:
        for name in sorted(classes["train"] ^ classes["val"]):
            has, lacks = ("train", "val") if name in classes["train"] else ("val", "train")
            splits[0].faults.append(f"{folder / lacks / name}: no such folder, but {has} has it")
    return splits


def broken(paths: Iterable[Path], sample: int | None, present: bool = False) -> list[str]:
    """A line for each image that is missing, and for each of the sample that cannot be decoded.

    Args:
        paths: the image files.
        sample: how many of them are decoded; None for all.
        present: that they exist is known already.
    """
    faults, existing = [], []
    for path in paths:
        if present or os.path.isfile(path):
            existing.append(path)
        else:
            faults.append(f"{path}: no such image")
    chosen = existing if sample is None or sample >= len(existing) else random.Random(0).sample(existing, sample)
    return faults + [fault for fault in map(_undecodable, chosen) if fault]


def _undecodable(path: Path) -> str | None:
    try:
        read_image(path)
    except UnreadableImage as error:
        return f"{path}: cannot be decoded ({error.reason[:80]})"
    return None


def _images(folder: Path) -> Sequence[Path]:
    return [Path(entry.path) for entry in os.scandir(folder) if entry.name.lower().endswith(IMAGE_SUFFIXES)]


def _is_imagenet(folder: Path) -> bool:
    train = folder / "train"
    return train.is_dir() and any(entry.is_dir() for entry in os.scandir(train))


LAYOUTS: tuple[tuple[Callable[[Path], bool], Callable[[Path, int | None], list[Split]]], ...] = (
    (lambda folder: folder.name in ("VOC2007", "VOC2012") and (folder / "ImageSets").is_dir(), check_voc),
    (lambda folder: any((folder / "annotations").glob("instances_*2017.json")), check_coco),
    (lambda folder: (folder / layouts.PLACES_LISTS).is_dir(), check_places205),
    (_is_imagenet, check_imagenet),
)
