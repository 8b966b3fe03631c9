"""Training with few labels: a published list of images, or a share of each class drawn by the seed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath

import numpy as np

from adco.data.images import ImageIndex
from adco.utils.errors import UserError


def drawn_list(index: ImageIndex, percent: float, seed: int) -> tuple[str, ...]:
    """Draw that share of each class's images, at least one of each.

    Args:
        index: the training images.
        percent: the share, in percent.
        seed: determines the draw together with the paths.

    Returns:
        The drawn paths, sorted.
    """
    paths, labels, drawn = np.array(index.paths), np.array(index.labels), []
    for label in range(len(index.classes)):
        own = np.sort(paths[labels == label])
        count = max(1, round(percent / 100 * len(own)))
        generator = np.random.default_rng([seed, label])
        drawn += generator.choice(own, min(count, len(own)), replace=False).tolist()
    return tuple(sorted(drawn))


def read_list(path: Path, index: ImageIndex) -> tuple[str, ...]:
    """Read a list as SimCLR publishes it: one image a line, `n01440764_10026.JPEG` or a path below the folder.

    Returns:
        The paths of the listed images in the index, sorted, each once.

    Raises:
        UserError: the file cannot be read or is empty, or a line names no image of the folder.
    """
    try:
        lines = [line.strip() for line in os.fsdecode(path.read_bytes()).splitlines() if line.strip()]
    except OSError as error:
        raise UserError(f"{path}: the list cannot be read ({error}); expected one image's name a line") from error
    by_name = {PurePosixPath(image).name: image for image in index.paths}
    known, listed = set(index.paths), []
    for number, line in enumerate(lines, 1):
        image = line if line in known else by_name.get(line)
        if image is None:
            raise UserError(f"{path}:{number}: {line!r} is not an image below {index.root}")
        listed.append(image)
    if not listed:
        raise UserError(f"{path}: the list is empty")
    return tuple(sorted(dict.fromkeys(listed)))


def list_sha256(paths: tuple[str, ...]) -> str:
    """Compute the sha256 of the paths, one a line: equal lists have equal hashes, drawn or read."""
    return hashlib.sha256(os.fsencode("".join(f"{path}\n" for path in paths))).hexdigest()


def only(index: ImageIndex, paths: tuple[str, ...]) -> ImageIndex:
    """Restrict an index to some of its images; the classes stay."""
    label = dict(zip(index.paths, index.labels, strict=True))
    return ImageIndex(index.root, paths, tuple(label[path] for path in paths), index.classes)
