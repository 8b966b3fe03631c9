"""The files of a detectron2 dataset: all are looked for before training, counted and fingerprinted."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from adco.data.datasets.annotations import VocObject, check_coco_content, inside, read_bytes, read_coco, voc_objects
from adco.data.datasets.layouts import voc_annotation_path, voc_image_path, voc_list_path
from adco.utils.errors import UserError
from adco.utils.files import sha256_of

ROOT_HINT = "DETECTRON2_DATASETS must name the folder that holds VOC2007, VOC2012 and coco"


def inspect_dataset(name: str) -> dict[str, object]:
    """Check a VOC or COCO dataset; images must exist, and are not decoded.

    Args:
        name: detectron2's name, e.g. `voc_2007_test`.

    Returns:
        {name, images, boxes, classes_with_boxes, fingerprint} for a record.

    Raises:
        UserError: an unknown dataset, or a file is absent, unreadable or has invalid annotations; it names the first.
    """
    if name not in DatasetCatalog.list():
        raise UserError(f"DATASETS: detectron2 knows no dataset {name!r}; e.g. voc_2007_test, coco_2017_val")
    metadata = MetadataCatalog.get(name)
    kind = metadata.get("evaluator_type")
    if kind == "pascal_voc":
        return {"name": name, **inspect_voc(Path(metadata.dirname), metadata.split, metadata.thing_classes)}
    if kind == "coco":
        return {"name": name, **inspect_coco(Path(metadata.json_file), Path(metadata.image_root))}
    raise UserError(f"DATASETS: {name} is neither a VOC nor a COCO dataset; there is no protocol for it here")


def inspect_voc(folder: Path, split: str, classes: Sequence[str]) -> dict[str, object]:
    """Check one VOC image list.

    Args:
        folder: one year's folder, e.g. VOCdevkit/VOC2007.
        split: name of the list, e.g. `test`.
        classes: the names that objects may have.

    Returns:
        {images, boxes, classes_with_boxes, fingerprint}. classes_with_boxes counts the classes of boxes that are not
        `difficult`, as the evaluator does. The fingerprint covers the list, the annotations and the sizes of the image
        files.

    Raises:
        UserError: a file is absent or invalid, or an object has another class.
    """
    listing = voc_list_path(folder, split)
    if not listing.is_file():
        raise UserError(f"{listing}: no such VOC image list; {ROOT_HINT}")
    ids = [line.strip() for line in os.fsdecode(read_bytes(listing, "image list")).splitlines()]
    if len(ids) < 2:
        raise UserError(f"{listing}: lists {len(ids)} images; detectron2 can read a list of two or more")
    boxes, counted, digest = 0, Counter(), hashlib.sha256()
    for image_id in ids:
        annotation, image = voc_annotation_path(folder, image_id), voc_image_path(folder, image_id)
        for path in (annotation, image):
            if not inside(image_id) or not os.path.isfile(path):
                raise UserError(f"{path}: no such file, but {listing} lists {image_id!r}")
        content = read_bytes(annotation, "annotation")
        objects = _known_objects(annotation, content, classes)
        boxes += len(objects)
        counted.update(item.name for item in objects if not item.difficult)
        digest.update(os.fsencode(f"{image_id} {image.stat().st_size} ") + content)
    return _facts(len(ids), boxes, len(counted), digest.hexdigest())


def inspect_coco(annotations: Path, images: Path) -> dict[str, object]:
    """Check one COCO annotation file and that every image it names exists below the folder `images`.

    Returns:
        {images, boxes, classes_with_boxes, fingerprint}; the fingerprint is the annotation file's sha256.

    Raises:
        UserError: a file is absent or invalid.
    """
    if not annotations.is_file():
        raise UserError(f"{annotations}: no such COCO annotation file; {ROOT_HINT}")
    if not images.is_dir():
        raise UserError(f"{images}: no such image folder; {ROOT_HINT}")
    content = read_coco(annotations)
    if faults := check_coco_content(content)[0]:
        raise UserError(f"{annotations}: {'; '.join(faults)}; correct the file, tools/check_data.py lists everything")
    if not content["annotations"]:
        raise UserError(f"{annotations}: it has no annotations; nothing can be trained or evaluated on it")
    named, present = [image["file_name"] for image in content["images"]], set(os.listdir(images))
    for name in named:
        if name not in present and not os.path.isfile(images / name):
            raise UserError(f"{images / name}: no such image, but {annotations} names it")
    categories = {box["category_id"] for box in content["annotations"]}
    return _facts(len(named), len(content["annotations"]), len(categories), sha256_of(annotations))


def _known_objects(path: Path, content: bytes, classes: Sequence[str]) -> list[VocObject]:
    objects = voc_objects(path, content)
    for item in objects:
        if item.name not in classes:
            raise UserError(f"{path}: class {item.name!r} is not one of VOC's {len(classes)}")
    return objects


def _facts(images: int, boxes: int, classes: int, fingerprint: str) -> dict[str, object]:
    return {"images": images, "boxes": boxes, "classes_with_boxes": classes, "fingerprint": fingerprint}
