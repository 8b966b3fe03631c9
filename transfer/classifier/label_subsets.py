"""Few labels: a published list of images, or a share of each class drawn by the seed; either way hashed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

import numpy as np

from adco.data.images import ImageIndex
from adco.utils.errors import UserError


def drawn_list(index: ImageIndex, percent: float, seed: int) -> tuple[str, ...]:
    """That share of each class's images, at least one, by the seed and the paths alone; sorted by path."""
    paths, labels, chosen = np.array(index.paths), np.array(index.labels), []
    for label in range(len(index.classes)):
        own = np.sort(paths[labels == label])
        count = max(1, round(percent / 100 * len(own)))
        generator = np.random.default_rng([seed, label])
        chosen += generator.choice(own, min(count, len(own)), replace=False).tolist()
    return tuple(sorted(chosen))


def read_list(path: Path, index: ImageIndex) -> tuple[str, ...]:
    """A list as SimCLR publishes it: one image a line, `n01440764_10026.JPEG` or a path below the folder.

    Raises UserError for a line that no image of the folder answers to.
    """
    try:
        lines = [line.strip() for line in os.fsdecode(path.read_bytes()).splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: the list cannot be read ({error}); expected one image's name a line") from error
    by_name = {PurePosixPath(found).name: found for found in index.paths}
    known, chosen = set(index.paths), []
    for number, line in enumerate(lines, 1):
        found = line if line in known else by_name.get(line)
        if found is None:
            raise UserError(f"{path}:{number}: {line!r} is not an image below {index.root}")
        chosen.append(found)
    if not chosen:
        raise UserError(f"{path}: the list is empty")
    return tuple(sorted(dict.fromkeys(chosen)))


def list_sha256(paths: tuple[str, ...]) -> str:
    """sha256 of the names, one a line: the same list has the same hash, however it came about."""
    return hashlib.sha256(os.fsencode("".join(f"{path}\n" for path in paths))).hexdigest()


def only(index: ImageIndex, paths: tuple[str, ...]) -> ImageIndex:
    """The index of those images alone, classes as they are."""
    label = dict(zip(index.paths, index.labels, strict=True))
    return ImageIndex(index.root, paths, tuple(label[path] for path in paths), index.classes)
