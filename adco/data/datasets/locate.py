"""Find the benchmarks' data sets below a folder, with their sizes and a fingerprint that changes when they change."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adco.data.datasets import layouts
from adco.data.datasets.layouts import COCO_SUBSETS, IMAGE_SUFFIXES, PLACES_IMAGES, PLACES_LISTS
from adco.utils.errors import UserError
from adco.utils.files import sha256_of

DEPTH = 3  # levels of folders below the data root that are searched


@dataclass(frozen=True)
class Dataset:
    """A data set on disk.

    Attributes:
        name: a key of KINDS.
        path: its folder.
        counts: split -> number of images.
        fingerprint: a sha256 that changes when the data set changes.
    """

    name: str
    path: Path
    counts: Mapping[str, int] = field(default_factory=dict)
    fingerprint: str = ""


@dataclass(frozen=True)
class DatasetSpec:
    """How a kind of data set is recognised and read.

    Attributes:
        expected: a description of its layout.
        is_one: whether a folder is this data set.
        facts: path -> (number of images by split, fingerprint).
        inside: folders below a path given by the user that may be meant.
    """

    expected: str
    is_one: Callable[[Path], bool]
    facts: Callable[[Path], tuple[dict[str, int], str]]
    inside: tuple[str, ...] = ()


def find_all(root: Path | None, given: Mapping[str, Path], wanted: Iterable[str]) -> tuple[dict[str, Dataset], dict]:
    """Find data sets.

    Args:
        root: where to search, three folders deep.
        given: name -> the user's own choice, which must be right.
        wanted: names of the data sets to find, keys of KINDS.

    Returns:
        The data sets by name, and for each that is missing a message.

    Raises:
        UserError: an unknown name, a given path that is not the data set, two folders that could be meant.
    """
    for name, path in given.items():
        if name not in KINDS:
            raise UserError(f"--data {name}={path}: not a data set; choose {', '.join(KINDS)}")
    if root is not None and not root.is_dir():
        raise UserError(f"{root}: no such folder; --data-root names the one that holds the data sets")
    folders = list(_below(root)) if root is not None else []
    datasets, missing = {}, {}
    for name in dict.fromkeys(wanted):
        path = _chosen(name, given[name]) if name in given else _located(name, folders)
        if path is None:
            where = f"below {root}" if root is not None else f"given (--data {name}=FOLDER)"
            missing[name] = f"no {name} {where}, expected {KINDS[name].expected}"
        else:
            counts, fingerprint = KINDS[name].facts(path)
            datasets[name] = Dataset(name, path, counts, fingerprint)
    return datasets, missing


def linked(datasets: Mapping[str, Dataset], folder: Path) -> Path:
    """Link data sets as VOC2007, VOC2012 and coco into one folder, as DETECTRON2_DATASETS needs; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, link in (("voc2007", "VOC2007"), ("voc2012", "VOC2012"), ("coco", "coco")):
        if name in datasets:
            target, temporary = datasets[name].path.resolve(), folder / f".{link}.{os.getpid()}"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target, target_is_directory=True)
            os.replace(temporary, folder / link)
    return folder


def _below(root: Path) -> Iterator[Path]:
    level = [root]
    yield from level
    for _ in range(DEPTH):
        level = [Path(entry.path) for folder in level for entry in sorted(_folders(folder), key=lambda e: e.name)]
        yield from level


def _folders(folder: Path) -> list[os.DirEntry]:
    try:
        folders = [entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []
    return folders if len(folders) <= 100 else []  # e.g. class folders: there is no data set below them


def _chosen(name: str, path: Path) -> Path:
    for candidate in (path, *(path / inside for inside in KINDS[name].inside)):
        if KINDS[name].is_one(candidate):
            return candidate
    raise UserError(f"--data {name}={path}: not {name}; expected {KINDS[name].expected}")


def _located(name: str, folders: list[Path]) -> Path | None:
    places = list({path.resolve(): path for path in folders if KINDS[name].is_one(path)}.values())
    named = [path for path in places if path.name.lower().startswith(name)]
    if len(places) > 1 and len(named) != 1:
        several = ", ".join(map(str, (named or places)[:4]))
        raise UserError(f"{name}: several folders could be it ({several}); choose with --data {name}=FOLDER")
    return (named or places or [None])[0]


def _voc_facts(folder: Path) -> tuple[dict[str, int], str]:
    """Lists and annotations by content, images by size."""
    digest, lists = hashlib.sha256(), folder / layouts.VOC_LISTS
    counts = {path.stem: len(path.read_text().split()) for path in lists.glob("*.txt") if "_" not in path.stem}
    for part in (lists, folder / "Annotations"):
        for path in sorted(part.iterdir()) if part.is_dir() else ():
            digest.update(f"{path.name}\0".encode() + path.read_bytes())
    _sizes(folder / "JPEGImages", digest)
    return counts, digest.hexdigest()


def _coco_facts(folder: Path) -> tuple[dict[str, int], str]:
    """Annotation files by content, images by size."""
    digest, counts = hashlib.sha256(), {}
    for split in COCO_SUBSETS:
        digest.update(sha256_of(layouts.coco_annotation_path(folder, split)).encode())
        counts[split.removesuffix("2017")] = _sizes(folder / split, digest)
    return counts, digest.hexdigest()


def _places_facts(folder: Path) -> tuple[dict[str, int], str]:
    """The original lists by content, without the two million images; else as ImageNet."""
    if not (folder / PLACES_LISTS).is_dir():
        return _folder_facts(folder)
    digest, counts = hashlib.sha256(), {}
    for split in ("train", "val"):
        content = layouts.places_list_path(folder, split).read_bytes()
        digest.update(content)
        counts[split] = sum(bool(line.strip()) for line in content.splitlines())
    return counts, digest.hexdigest()


def _folder_facts(folder: Path) -> tuple[dict[str, int], str]:
    """train/CLASS/IMAGE and val/CLASS/IMAGE: every path and size."""
    digest = hashlib.sha256()
    counts = {split: _sizes(folder / split, digest) for split in ("train", "val")}
    return counts, digest.hexdigest()


def _sizes(folder: Path, digest: hashlib._Hash) -> int:
    """Add every image's path and size to the digest; returns the number of images."""
    count = 0
    for place, subfolders, files in os.walk(folder, followlinks=True):
        subfolders.sort()
        for name in sorted(name for name in files if name.lower().endswith(IMAGE_SUFFIXES)):
            path = os.path.join(place, name)
            size = os.stat(path).st_size if os.path.exists(path) else -1
            digest.update(f"{os.path.relpath(path, folder)}\0{size}\n".encode(errors="surrogateescape"))
            count += 1
    return count


def _is_voc(year: str) -> Callable[[Path], bool]:
    return lambda path: path.name == f"VOC{year}" and layouts.is_voc(path)


def _is_coco(path: Path) -> bool:
    return all(layouts.coco_annotation_path(path, subset).is_file() for subset in COCO_SUBSETS)


def _is_places(path: Path) -> bool:
    if (path / PLACES_LISTS).is_dir():
        return (path / PLACES_IMAGES).is_dir()
    return path.name.lower().startswith("places") and _has_classes(path)


def _is_imagenet(path: Path) -> bool:
    return _has_classes(path) and not path.name.lower().startswith("places")


def _has_classes(path: Path) -> bool:
    def classes(split: str) -> bool:
        with os.scandir(path / split) as entries:
            return any(entry.is_dir() for entry in entries)

    return all((path / split).is_dir() and classes(split) for split in ("train", "val"))


KINDS = {
    "voc2007": DatasetSpec("VOC2007 or VOCdevkit/VOC2007 with ImageSets/Main", _is_voc("2007"), _voc_facts,
                    ("VOC2007", "VOCdevkit/VOC2007")),
    "voc2012": DatasetSpec("VOC2012 or VOCdevkit/VOC2012 with ImageSets/Main", _is_voc("2012"), _voc_facts,
                    ("VOC2012", "VOCdevkit/VOC2012")),
    "coco": DatasetSpec("coco/annotations/instances_{train,val}2017.json, coco/train2017 and coco/val2017", _is_coco,
                 _coco_facts, ("coco",)),
    "places205": DatasetSpec(f"places205/{PLACES_LISTS}/{{train,val}}_places205.csv and places205/{PLACES_IMAGES}, or "
                      "places205/{train,val}/CLASS/IMAGE", _is_places, _places_facts, ("places205",)),
    "imagenet": DatasetSpec("imagenet/{train,val}/CLASS/IMAGE", _is_imagenet, _folder_facts, ("imagenet",)),
}  # fmt: skip
