"""Labelled features of an image folder with train/ and val/, for the probes that need nothing else."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adco.data.images import ImageIndex, index_folder
from adco.utils.errors import UserError
from transfer.cli import BenchmarkRun, skipped
from transfer.features.extract import Feature
from transfer.features.reading import ImageList


@dataclass(frozen=True)
class Split:
    """The readable images of one split.

    Attributes:
        features: (N, D) float32.
        labels: (N,) int64 class numbers.
        names: the N paths.
    """

    features: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labelled:
    """Both splits with the training split's class numbers.

    Attributes:
        train, val: the splits.
        classes: the classes' names.
        data: the data's part of a record.
        computed: images that went through the network for this, 0 when all features came from the cache.
        seconds: how long the extraction took.
    """

    train: Split
    val: Split
    classes: tuple[str, ...]
    data: dict[str, object]
    computed: int
    seconds: float


def read_folders(data: Path) -> tuple[ImageIndex, ImageIndex]:
    """Index data/train/CLASS and data/val/CLASS; the validation labels are renumbered as in training.

    Raises UserError for a folder without class folders, and for a class of val that train does not have.
    """
    train, val = (index_folder(data / name) for name in ("train", "val"))
    if train.classes == (".",):
        raise UserError(
            f"{train.root}: its images are in no class folder; expected train/CLASS/IMAGE and val/CLASS/IMAGE"
        )
    if unexpected := [name for name in val.classes if name not in train.classes]:
        raise UserError(f"{val.root}: class {unexpected[0]!r} is not in {train.root}; both need the same class folders")
    labels = tuple(train.classes.index(val.classes[label]) for label in val.labels)
    return train, ImageIndex(val.root, val.paths, labels, train.classes)


def labelled_features(
    job: BenchmarkRun, data: Path, folders: tuple[ImageIndex, ImageIndex], feature: Feature
) -> Labelled:
    """Extract one feature of both splits.

    Args:
        job: extracts features of a list of images.
        data: the folder, for the record.
        folders: what `read_folders` returned for it.
        feature: which feature.
    """
    splits, content, computed, seconds = {}, described(data, folders), 0, 0.0
    for index, name in zip(folders, ("train", "val"), strict=True):
        done = job.extract(ImageList(index.root, index.paths, name), [feature])
        names = tuple(index.paths[row] for row in done.kept)
        splits[name] = Split(done.rows[feature], np.array(index.labels)[done.kept], names)
        content |= {f"{name}_images": len(done.kept), f"{name}_unreadable": skipped(done)}
        computed, seconds = computed + done.computed, seconds + done.seconds
    return Labelled(splits["train"], splits["val"], folders[0].classes, content, computed, seconds)


def described(data: Path, folders: tuple[ImageIndex, ImageIndex]) -> dict[str, object]:
    """The data's part of a record; ILSVRC2012 is recognised by its numbers of classes and images, not by its folder."""
    train, val = folders
    official = (len(train.classes), len(train), len(val)) == (1000, 1_281_167, 50_000)
    name = "ImageNet" if official else data.resolve().name
    return {"name": name, "official": official, "classes": len(train.classes), "fingerprint": fingerprint(folders)}


def fingerprint(folders: tuple[ImageIndex, ImageIndex]) -> str:
    """sha256 of every image's split, path, size and class: the same wherever the folder is."""
    digest = hashlib.sha256()
    for index, name in zip(folders, ("train", "val"), strict=True):
        for path, label in zip(index.paths, index.labels, strict=True):
            file = index.root / path
            size = os.path.getsize(file) if os.path.exists(file) else -1
            digest.update(os.fsencode(f"{name}\0{path}\0{size}\0{index.classes[label]}\n"))
    return digest.hexdigest()
