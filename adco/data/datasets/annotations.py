"""Readers of VOC's XML and lists, COCO's JSON and Places205's lists; the content of these files is not trusted."""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeGuard
from xml.parsers import expat

from adco.utils.errors import UserError

VOC_FIELDS = ("name", "pose", "truncated", "difficult", "bndbox")  # what detectron2's VOC evaluator reads of an object
VOC_BOX = ("xmin", "ymin", "xmax", "ymax")
COCO_LISTS = ("images", "categories", "annotations")
PLACES_CLASSES = 205


@dataclass(frozen=True)
class VocObject:
    """One object of an annotation.

    Attributes:
        name: its class.
        difficult: whether evaluations leave it out.
        box: (xmin, ymin, xmax, ymax) in pixels, counted from 1 as in VOC's files.
    """

    name: str
    difficult: bool
    box: tuple[float, float, float, float]

    @property
    def empty(self) -> bool:
        """Whether the box has no area; detectron2 leaves such boxes out of training."""
        return self.box[2] <= self.box[0] or self.box[3] <= self.box[1]


@dataclass
class Faults:
    """The faults of a file. `kinds`: kind -> how many there are, and where the first is."""

    kinds: dict[str, tuple[int, object]] = field(default_factory=dict)

    def add(self, kind: str, where: object) -> None:
        """Count one more fault of a kind."""
        count, first = self.kinds.get(kind, (0, where))
        self.kinds[kind] = (count + 1, first)

    def lines(self) -> list[str]:
        """A line a kind: `KIND: 3, the first is 17`."""
        return [f"{kind}: {count}, the first is {str(where)[:80]}" for kind, (count, where) in self.kinds.items()]


def read_bytes(path: Path, what: str) -> bytes:
    """A file's bytes. Raises UserError that calls the file a `what`."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: no such {what}, or not readable ({error.strerror})") from error


def inside(name: object) -> TypeGuard[str]:
    """Whether a name from a list is a path below the folder of the list's images."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def voc_objects(path: Path, content: bytes | None = None) -> list[VocObject]:
    """The objects of a VOC annotation; `content` is read from `path` where it is not given.

    Raises UserError that names what is absent or broken. A document type, which could define entities, is refused.
    """
    content = read_bytes(path, "annotation") if content is None else content
    try:
        _refuse_entities(content)
        objects = ElementTree.fromstring(content).findall("object")
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError, RecursionError) as error:
        raise UserError(f"{path}: not a VOC annotation ({error})") from error
    return [_voc_object(path, item) for item in objects]


def voc_labels(path: Path, content: bytes) -> dict[str, int]:
    """The images of a VOC class list and their labels, lines `IMAGE LABEL`, label 1, 0 (difficult) or -1, in its order.

    Raises UserError that names the line.
    """
    labels: dict[str, int] = {}
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


def _voc_object(path: Path, item: ElementTree.Element) -> VocObject:
    absent = [name for name in VOC_FIELDS if item.find(name) is None]
    if absent:
        raise UserError(f"{path}: an object has no <{absent[0]}>, which detectron2's VOC evaluator reads")
    for name in VOC_BOX:
        if not _finite(item.findtext(f"bndbox/{name}", "")):
            raise UserError(f"{path}: an object's <bndbox> has no number in <{name}>")
    xmin, ymin, xmax, ymax = (float(item.findtext(f"bndbox/{name}", "")) for name in VOC_BOX)
    difficult = item.findtext("difficult", "").strip() == "1"
    return VocObject(item.findtext("name", "").strip(), difficult, (xmin, ymin, xmax, ymax))


def _refuse_entities(content: bytes) -> None:
    """Raise ValueError for a document type: a VOC annotation has none, and entities can expand without limit."""

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)


def read_coco(path: Path) -> dict:
    """The content of a COCO instances file, with lists of images, annotations and categories. Raises UserError."""
    try:
        content = json.loads(read_bytes(path, "COCO annotation file"))
        for key in COCO_LISTS:
            if not isinstance(content[key], list) or not all(isinstance(item, dict) for item in content[key]):
                raise TypeError(f"{key} is no list of mappings")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a COCO instances file ({type(error).__name__}: {str(error)[:200]})") from error
    return content


def check_coco_content(content: dict) -> tuple[list[str], list[str]]:
    """The faults and notes of `read_coco`'s content, a line a kind.

    Returns:
        What would stop a training or falsify it, and what detectron2 leaves out of the training.
    """
    faults, notes = Faults(), Faults()
    images, categories, boxes = (_by_id(content[key], key, faults) for key in COCO_LISTS)
    for key, image in images.items():
        if not inside(image.get("file_name")):
            faults.add("images without a file_name below their folder", key)
        if not all(isinstance(image.get(side), int) and image[side] > 0 for side in ("width", "height")):
            faults.add("images without a width and height", key)
    for key, box in boxes.items():
        image = images.get(_hashable(box.get("image_id")))
        if image is None:
            faults.add("annotations of images that it does not list", key)
        if _hashable(box.get("category_id")) not in categories:
            faults.add("annotations of categories that it does not list", key)
        if not _four_numbers(box.get("bbox")):
            faults.add("boxes that are not four finite numbers", key)
        elif _empty(box["bbox"], image or {}):
            notes.add("boxes without area or outside their image, left out", key)
        if not _sound_shape(box.get("segmentation", []), image or {}):
            faults.add("segmentations that are neither polygons nor a run-length code of their image's size", key)
    return faults.lines(), notes.lines()


def places_list(path: Path, content: bytes) -> tuple[list[str], list[int]]:
    """The images and labels of a Places205 list, lines `PATH LABEL`. Raises UserError that names the line."""
    labels: dict[str, int] = {}
    names, numbers = [], []
    for number, line in enumerate(os.fsdecode(content).splitlines(), 1):
        if not line.strip():
            continue
        name, _, label = (part.strip() for part in line.strip().rpartition(" "))
        if not inside(name) or not (label.isascii() and label.isdecimal() and len(label) < 9):
            raise UserError(f"{path}:{number}: expected `PATH LABEL`, found {line[:100]!r}")
        if int(label) >= PLACES_CLASSES:
            raise UserError(f"{path}:{number}: label {label}; expected 0 to {PLACES_CLASSES - 1}")
        if labels.setdefault(name, int(label)) != int(label):
            raise UserError(f"{path}:{number}: {name} has label {label} here and {labels[name]} above; correct one")
        names.append(name)
        numbers.append(int(label))
    if not names:
        raise UserError(f"{path}: the list is empty")
    return names, numbers


def _by_id(items: list[dict], kind: str, faults: Faults) -> dict:
    """id -> item; an item without an id, and one whose id is there already, is a fault."""
    by_id: dict = {}
    for item in items:
        key = _hashable(item.get("id"))
        if key is None or key in by_id:
            faults.add(f"{kind} without an id" if key is None else f"{kind} whose id is there twice", key)
        by_id[key] = item
    return by_id


def _hashable(value: object) -> int | str | None:
    return value if isinstance(value, (int, str)) else None


def _finite(value: float | str) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _numbers(values: object) -> TypeGuard[list[float]]:
    return isinstance(values, list) and all(isinstance(v, (int, float)) and _finite(v) for v in values)


def _four_numbers(values: object) -> bool:
    return _numbers(values) and len(values) == 4


def _empty(box: list[float], image: dict) -> bool:
    """Whether (x, y, width, height) has no area inside its image."""
    x, y, width, height = box
    sides = (image.get("width"), image.get("height"))
    wide, high = (side if isinstance(side, int) else math.inf for side in sides)
    return min(x + width, wide) <= max(x, 0) or min(y + height, high) <= max(y, 0)


def _sound_shape(shape: object, image: dict) -> bool:
    """Whether it is polygons, or a run-length code whose runs fill its image: pycocotools' C code trusts them."""
    if isinstance(shape, list):
        return all(_numbers(polygon) for polygon in shape)
    if not isinstance(shape, dict) or shape.get("size") != [image.get("height"), image.get("width")]:
        return False
    counts = shape.get("counts")
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        return False
    return sum(runs) == shape["size"][0] * shape["size"][1]


def _runs(text: str) -> list[int] | None:
    """The runs of COCO's compressed code; None where it is invalid.

    A character has 5 bits, counted from "0"; its sixth bit means that more characters of the run follow. From the
    fourth run on the code is the difference to the run before the previous one.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value, shift = 0, 0
    return None if shift else runs
