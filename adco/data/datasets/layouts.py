"""The folders and files of VOC, COCO and Places205 in their official layouts, and the names of VOC's classes."""

from __future__ import annotations

from pathlib import Path

from adco.utils.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # fingerprints depend on this list
VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_LISTS = Path("ImageSets/Main")
COCO_SUBSETS = ("train2017", "val2017")
PLACES_LISTS = Path("trainvalsplit_places205")
PLACES_IMAGES = Path("data/vision/torralba/deeplearning/images256")


def is_voc(folder: Path) -> bool:
    """Whether a folder is one year's VOC, e.g. VOCdevkit/VOC2007: whether it has the folder of image lists."""
    return (folder / VOC_LISTS).is_dir()


def find_voc2007(data: Path) -> Path:
    """The VOC2007 folder: `data`, data/VOC2007 or data/VOCdevkit/VOC2007. Raises UserError where there is none."""
    for folder in (data, data / "VOC2007", data / "VOCdevkit" / "VOC2007"):
        if is_voc(folder):
            return folder
    raise UserError(f"{data}: no VOC2007 in it; expected ImageSets/Main below it, VOC2007 or VOCdevkit/VOC2007")


def voc_list_path(folder: Path, name: str) -> Path:
    """The image list of a split, `test`, or of a class in a split, `cat_test`."""
    return folder / VOC_LISTS / f"{name}.txt"


def voc_image_path(folder: Path, image_id: str) -> Path:
    """The image file of VOC's image `image_id`."""
    return folder / "JPEGImages" / f"{image_id}.jpg"


def voc_annotation_path(folder: Path, image_id: str) -> Path:
    """The file with the boxes of VOC's image `image_id`."""
    return folder / "Annotations" / f"{image_id}.xml"


def coco_annotation_path(folder: Path, subset: str) -> Path:
    """The annotation file of COCO's `train2017` or `val2017`; the images are in `folder / subset`."""
    return folder / "annotations" / f"instances_{subset}.json"


def places_list_path(folder: Path, split: str) -> Path:
    """The list of Places205's `train` or `val`; its images are in `folder / PLACES_IMAGES`."""
    return folder / PLACES_LISTS / f"{split}_places205.csv"
