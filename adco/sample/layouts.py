"""The layouts of ImageNet, VOC, COCO and Places205: the path of each image, and the files that describe it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from adco.sample.backdrops import SCENE_NAMES
from adco.sample.objects import CLASSES
from adco.sample.outline import area, bounding_box, polygons, run_lengths
from adco.sample.pictures import Picture, portrait, street_life, view
from adco.sample.scene import Seen, generator
from adco.utils.errors import UserError

Annotations = dict[str, Any] | None  # what the lists of a layout need to know of an image

FOLDERS = ("imagenet", "VOCdevkit", "coco", "places205")
PLACES_IMAGES = "places205/data/vision/torralba/deeplearning/images256"
JPEG_QUALITY = 90
# (layout, subset) -> divisor of --images. The position is the split's number, which images depend on: append only.
SUBSETS = {
    ("imagenet", "train"): 1, ("imagenet", "val"): 5,
    ("VOC2007", "trainval"): 5, ("VOC2007", "test"): 5, ("VOC2012", "trainval"): 10,
    ("coco", "train"): 5, ("coco", "val"): 10,
    ("places205", "train"): 5, ("places205", "val"): 10,
}  # fmt: skip

# COCO's 80 categories in order, by supercategory; ids run from 1 and skip COCO_GAPS.
COCO_NAMES = {
    "person": "person",
    "vehicle": "bicycle,car,motorcycle,airplane,bus,train,truck,boat",
    "outdoor": "traffic light,fire hydrant,stop sign,parking meter,bench",
    "animal": "bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe",
    "accessory": "backpack,umbrella,handbag,tie,suitcase",
    "sports": "frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket",
    "kitchen": "bottle,wine glass,cup,fork,knife,spoon,bowl",
    "food": "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake",
    "furniture": "chair,couch,potted plant,bed,dining table,toilet",
    "electronic": "tv,laptop,mouse,remote,keyboard,cell phone",
    "appliance": "microwave,oven,toaster,sink,refrigerator",
    "indoor": "book,clock,vase,scissors,teddy bear,hair drier,toothbrush",
}
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
VOC_TO_COCO = {
    "aeroplane": "airplane", "motorbike": "motorcycle", "diningtable": "dining table",
    "pottedplant": "potted plant", "sofa": "couch", "tvmonitor": "tv",
}  # fmt: skip


def coco_categories() -> list[dict]:
    """The 80 categories of COCO 2017: supercategory, id (1 to 90 with ten gaps) and name."""
    ids = iter(number for number in range(1, 91) if number not in COCO_GAPS)
    return [
        {"supercategory": group, "id": next(ids), "name": name}
        for group, names in COCO_NAMES.items()
        for name in names.split(",")
    ]


COCO_ID = {category["name"]: category["id"] for category in coco_categories()}


@dataclass(frozen=True)
class DrawTask:
    """One image to draw.

    Attributes:
        layout: `imagenet`, `VOC2007`, `VOC2012`, `coco` or `places205`.
        subset: The split, e.g. `train`.
        split: The split's number.
        number: The image's number in its split, from 0.
        name: Its class, scene, file stem or id.
        path: Its file, relative to the sample's folder.
    """

    layout: str
    subset: str
    split: int
    number: int
    name: str
    path: str


def jobs(images: int) -> list[DrawTask]:
    """Every image of a sample whose ImageNet training set has `images` of them."""
    tasks = []
    for split, ((layout, subset), divisor) in enumerate(SUBSETS.items()):
        for number in range(images // divisor):
            tasks.append(DrawTask(layout, subset, split, number, *_name_and_path(layout, subset, number)))
    return tasks


def _name_and_path(layout: str, subset: str, number: int) -> tuple[str, str]:
    """Name and path. Ids depend on the number alone: odd for training sets and even for evaluation sets."""
    first = subset in ("train", "trainval")
    identity = 2 * number + (1 if first else 2)
    if layout == "imagenet":
        name = CLASSES[number % len(CLASSES)]
        return name, f"imagenet/{subset}/{name}/{name}_{identity:06d}.jpg"
    if layout == "VOC2007":
        return f"{identity:06d}", f"VOCdevkit/VOC2007/JPEGImages/{identity:06d}.jpg"
    if layout == "VOC2012":
        name = f"{2008 + number % 4}_{number // 4 + 1:06d}"
        return name, f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg"
    if layout == "coco":
        return str(identity), f"coco/{subset}2017/{identity:012d}.jpg"
    scene = SCENE_NAMES[number % len(SCENE_NAMES)]
    return scene, f"{PLACES_IMAGES}/{scene[0]}/{scene}/gsun_{identity:032x}.jpg"


def draw(out: Path, seed: int, job: DrawTask) -> Annotations:
    """Draw one image and write it; for VOC its XML file, too.

    Args:
        out: The sample's folder.
        seed: The sample's seed.
        job: Which image.

    Returns:
        What `write_lists` needs: for VOC each class's flag, for COCO the image's entry and annotations, else None.

    Raises:
        UserError: When a file cannot be written.
    """
    rng = generator(seed, job.split, job.number)
    if job.layout == "imagenet":
        picture = portrait(rng, job.name)
    elif job.layout == "places205":
        picture = view(rng, job.name)
    else:
        picture = None
        while picture is None or not picture.seen:  # an image in which no object is visible is drawn again
            picture = street_life(rng, CLASSES[job.number % len(CLASSES)], crowds=job.layout == "coco")
    try:
        Image.fromarray(picture.rgb).save(out / job.path, quality=JPEG_QUALITY)
        if job.layout.startswith("VOC"):
            xml = out / "VOCdevkit" / job.layout / "Annotations" / f"{job.name}.xml"
            xml.write_text(voc_xml(job.layout, job.name, picture))
    except OSError as error:
        raise UserError(f"{out / job.path}: cannot be written ({error.strerror or error})") from error
    if job.layout.startswith("VOC"):
        return _voc_flags(picture.seen)
    return coco_records(job, picture) if job.layout == "coco" else None


def voc_xml(layout: str, name: str, picture: Picture) -> str:
    """The annotation file of an image in VOC 2007's format: boxes from 1, both ends included."""
    height, width = picture.rgb.shape[:2]
    lines = [
        "<annotation>", f"\t<folder>{layout}</folder>", f"\t<filename>{name}.jpg</filename>",
        "\t<source>", "\t\t<database>AdCo sample, drawn</database>", f"\t\t<annotation>PASCAL {layout}</annotation>",
        "\t\t<image>drawn</image>", "\t</source>",
        "\t<size>", f"\t\t<width>{width}</width>", f"\t\t<height>{height}</height>", "\t\t<depth>3</depth>",
        "\t</size>",
        "\t<segmented>0</segmented>",
    ]  # fmt: skip
    for seen in picture.seen:
        x0, y0, x1, y1 = seen.box
        lines += [
            "\t<object>", f"\t\t<name>{escape(seen.name)}</name>", f"\t\t<pose>{seen.pose}</pose>",
            f"\t\t<truncated>{int(seen.truncated)}</truncated>", f"\t\t<difficult>{int(seen.difficult)}</difficult>",
            "\t\t<bndbox>", f"\t\t\t<xmin>{x0 + 1}</xmin>", f"\t\t\t<ymin>{y0 + 1}</ymin>",
            f"\t\t\t<xmax>{x1}</xmax>", f"\t\t\t<ymax>{y1}</ymax>", "\t\t</bndbox>", "\t</object>",
        ]  # fmt: skip
    return "\n".join([*lines, "</annotation>", ""])


def _voc_flags(seen: list[Seen]) -> dict[str, int]:
    """For each class in the image 1, or 0 when all of its objects are difficult."""
    flags: dict[str, int] = {}
    for thing in seen:
        flags[thing.name] = max(flags.get(thing.name, 0), int(not thing.difficult))
    return flags


def coco_records(job: DrawTask, picture: Picture) -> dict:
    """COCO's entry of an image and its annotations, with ids that depend on the image alone."""
    height, width = picture.rgb.shape[:2]
    image_id, path = int(job.name), Path(job.path)
    image = {
        "license": 1, "file_name": path.name, "coco_url": f"drawn/{path.parent.name}/{path.name}", "height": height,
        "width": width, "date_captured": "2017-01-01 00:00:00", "flickr_url": "", "id": image_id,
    }  # fmt: skip
    singles = [seen for seen in picture.seen if seen.group < 0]
    crowd = [seen for seen in picture.seen if seen.group >= 0]
    bodies = [_outlined(seen) for seen in singles]
    if crowd:
        mask = np.logical_or.reduce([seen.mask for seen in crowd])
        xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
        box = [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]
        bodies.append({
            "segmentation": run_lengths(mask), "area": int(mask.sum()), "iscrowd": 1,
            "bbox": [float(side) for side in box], "category_id": _coco_id(crowd[0].name),
        })  # fmt: skip
    notes = [{**body, "image_id": image_id, "id": 1000 * image_id + k} for k, body in enumerate(bodies)]
    return {"image": image, "annotations": notes}


def _coco_id(name: str) -> int:
    return COCO_ID[VOC_TO_COCO.get(name, name)]


def _outlined(seen: Seen) -> dict:
    outlines = polygons(seen.mask)
    return {
        "segmentation": [loop.ravel().tolist() for loop in outlines], "area": area(outlines), "iscrowd": 0,
        "bbox": bounding_box(outlines), "category_id": _coco_id(seen.name),
    }  # fmt: skip


def make_folders(out: Path, wanted: list[DrawTask]) -> None:
    """Create the folders of the images and lists below `out`."""
    folders = {(out / job.path).parent for job in wanted}
    for year in ("VOC2007", "VOC2012"):
        folders |= {out / "VOCdevkit" / year / "Annotations", out / "VOCdevkit" / year / "ImageSets" / "Main"}
    folders |= {out / "coco" / "annotations", out / "places205" / "trainvalsplit_places205"}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)


def write_lists(out: Path, drawn: Sequence[tuple[DrawTask, Annotations]]) -> None:
    """Write the files that list images: VOC's image sets, COCO's JSON files and Places205's CSV files.

    Args:
        out: The sample's folder.
        drawn: All images, each with what `draw` has returned.
    """
    for year in ("VOC2007", "VOC2012"):
        flags = [(job, notes) for job, notes in drawn if job.layout == year and notes is not None]
        write_voc_sets(out / "VOCdevkit" / year / "ImageSets" / "Main", flags)
    for subset in ("train", "val"):
        records = [notes for job, notes in drawn if (job.layout, job.subset) == ("coco", subset) and notes is not None]
        write_coco(out / "coco" / "annotations" / f"instances_{subset}2017.json", records)
        views = [job for job, _ in drawn if (job.layout, job.subset) == ("places205", subset)]
        lines = [f"{job.path[len(PLACES_IMAGES) + 1 :]} {SCENE_NAMES.index(job.name)}\n" for job in views]
        (out / "places205" / "trainvalsplit_places205" / f"{subset}_places205.csv").write_text("".join(lines))


def write_voc_sets(main: Path, drawn: list[tuple[DrawTask, dict[str, int]]]) -> None:
    """Write the lists `train`, `val`, `trainval`, `test`, and for each class the same with 1, -1 or 0 (difficult)."""
    sets: dict[str, dict[str, dict[str, int]]] = {}
    for job, flags in drawn:
        half = "train" if (job.number + job.number // len(CLASSES)) % 2 == 0 else "val"
        for name in ("trainval", half) if job.subset == "trainval" else (job.subset,):
            sets.setdefault(name, {})[job.name] = flags
    for name, members in sets.items():
        ordered = sorted(members.items())
        (main / f"{name}.txt").write_text("".join(f"{identity}\n" for identity, _ in ordered))
        for kind in CLASSES:
            lines = [f"{identity} {flags.get(kind, -1):2d}\n" for identity, flags in ordered]
            (main / f"{kind}_{name}.txt").write_text("".join(lines))


def write_coco(path: Path, records: list[dict]) -> None:
    """Write one `instances` file of COCO."""
    content = {
        "info": {"description": "AdCo sample in COCO 2017's layout, drawn", "url": "", "version": "1.0", "year": 2017,
                 "contributor": "AdCo", "date_created": "2017/09/01"},
        "licenses": [{"url": "", "id": 1, "name": "MIT"}],
        "images": [record["image"] for record in records],
        "annotations": [note for record in records for note in record["annotations"]],
        "categories": coco_categories(),
    }  # fmt: skip
    path.write_text(json.dumps(content, separators=(",", ":")))
