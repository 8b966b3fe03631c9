"""Annotation files that others wrote - VOC's XML, COCO's JSON, Places205's lists - read with nothing believed."""

from __future__ import annotations

import json
import math
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.parsers import expat

from adco.utils.errors import UserError

VOC_FIELDS = ("name", "pose", "truncated", "difficult", "bndbox")  # what detectron2's VOC evaluator reads of an object
VOC_BOX = ("xmin", "ymin", "xmax", "ymax")
COCO_LISTS = ("images", "categories", "annotations")
PLACES_CLASSES = 205


@dataclass(frozen=True)
class VocObject:
    """name: its class; box: xmin, ymin, xmax, ymax in pixels from 1, as VOC has them."""

    name: str
    difficult: bool
    box: tuple[float, float, float, float]

    @property
    def empty(self) -> bool:
        """Whether the box has no area, so that detectron2 leaves it out of training."""
        return self.box[2] <= self.box[0] or self.box[3] <= self.box[1]


@dataclass
class Faults:
    """What is wrong with a file, by kind: how often, and where first."""

    found: dict[str, tuple[int, object]] = field(default_factory=dict)

    def add(self, kind: str, where: object) -> None:
        """One more of a kind."""
        count, first = self.found.get(kind, (0, where))
        self.found[kind] = (count + 1, first)

    def lines(self) -> list[str]:
        """`KIND: 3, the first is 17`."""
        return [f"{kind}: {count}, the first is {str(where)[:80]}" for kind, (count, where) in self.found.items()]


def read_bytes(path: Path, what: str) -> bytes:
    """A file's bytes. Raises UserError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: no such {what}, or not readable ({error.strerror})") from error


def inside(name: object) -> bool:
    """Whether a name from a list stays below the folder it is looked for in."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def voc_objects(path: Path, content: bytes | None = None) -> list[VocObject]:
    """Every object of a VOC annotation. Raises UserError naming what is absent or broken; entities are refused."""
    content = read_bytes(path, "annotation") if content is None else content
    try:
        _refuse_entities(content)
        objects = ElementTree.fromstring(content).findall("object")
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError, RecursionError) as error:
        raise UserError(f"{path}: not a VOC annotation ({error})") from error
    return [_voc_object(path, item) for item in objects]


def _voc_object(path: Path, item: ElementTree.Element) -> VocObject:
    absent = [name for name in VOC_FIELDS if item.find(name) is None]
    if absent:
        raise UserError(f"{path}: an object has no <{absent[0]}>, which detectron2's VOC evaluator reads")
    for name in VOC_BOX:
        if not _finite(item.findtext(f"bndbox/{name}", "")):
            raise UserError(f"{path}: an object's <bndbox> has no number in <{name}>")
    box = tuple(float(item.findtext(f"bndbox/{name}")) for name in VOC_BOX)
    return VocObject(item.findtext("name").strip(), item.findtext("difficult").strip() == "1", box)


def _refuse_entities(content: bytes) -> None:
    """Raise ValueError for a document type: a VOC annotation has none, and entities can grow without end."""

    def refuse(*_: object) -> None:
        raise ValueError("it declares a document type")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(content, True)


def read_coco(path: Path) -> dict:
    """A COCO instances file with lists of images, annotations and categories. Raises UserError."""
    try:
        content = json.loads(read_bytes(path, "COCO annotation file"))
        for key in COCO_LISTS:
            if not isinstance(content[key], list) or not all(isinstance(item, dict) for item in content[key]):
                raise TypeError(f"{key} is no list of mappings")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a COCO instances file ({type(error).__name__}: {str(error)[:200]})") from error
    return content


def check_coco_content(content: dict) -> tuple[list[str], list[str]]:
    """(what would break a training or falsify it, what detectron2 leaves out of it), a line a kind; of `read_coco`."""
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
    """Names and labels of a Places205 list, lines `PATH LABEL`. Raises UserError that names the line."""
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
    """id -> item; a fault for an item without one and for one that is there twice."""
    found: dict = {}
    for item in items:
        key = _hashable(item.get("id"))
        if key is None or key in found:
            faults.add(f"{kind} without an id" if key is None else f"{kind} whose id is there twice", key)
        found[key] = item
    return found


def _hashable(value: object) -> int | str | None:
    return value if isinstance(value, (int, str)) else None


def _finite(value: object) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _numbers(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(v, (int, float)) and _finite(v) for v in values)


def _four_numbers(values: object) -> bool:
    return _numbers(values) and len(values) == 4


def _empty(box: list[float], image: dict) -> bool:
    """Whether (x, y, width, height) has no area inside its image."""
    x, y, width, height = box
    wide, high = (image.get(side) if isinstance(image.get(side), int) else math.inf for side in ("width", "height"))
    return min(x + width, wide) <= max(x, 0) or min(y + height, high) <= max(y, 0)


def _sound_shape(shape: object, image: dict) -> bool:
    """Polygons, or a run-length code whose runs fill its image: pycocotools' C shall not see one that lies."""
    if isinstance(shape, list):
        return all(_numbers(polygon) for polygon in shape)
    if not isinstance(shape, dict) or shape.get("size") != [image.get("height"), image.get("width")]:
        return False
    counts = shape.get("counts")
    runs = _runs(counts) if isinstance(counts, str) else counts
    good = isinstance(runs, list) and all(type(run) is int and run >= 0 for run in runs)
    return good and sum(runs) == shape["size"][0] * shape["size"][1]


def _runs(text: str) -> list[int] | None:
    """The runs of COCO's compressed code: 5 bits a character from "0" on, the sixth says that more follow, and from the
    fourth run on the difference to the run before the last; None where a character is none of it."""
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
