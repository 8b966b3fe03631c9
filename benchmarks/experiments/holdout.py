"""Hold out a part of the training images to choose hyper-parameters on, so that these do not depend on test images.

Whether an image is held out follows from the sha256 of its name, so the split depends on no seed, order or machine, and
stays the same when images are added. The parts are folders of links in ImageNet's layout: `train` and `val`.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from adco.data.images import index_folder
from adco.utils.errors import UserError

ONE_IN = 5  # a fifth of train is held out


def is_held_out(name: str, one_in: int = ONE_IN) -> bool:
    """Whether the image CLASS/FILE is held out: the first 8 bytes of its sha256 are divisible by `one_in`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % one_in == 0


def held_out_split(data: Path, folder: Path, one_in: int = ONE_IN) -> Path:
    """Write `folder/train` and `folder/val`: links to the images of `data/train`.

    Args:
        data: A folder with train/CLASS/IMAGE.
        folder: Where the links go.
        one_in: One image in so many is held out.

    Returns:
        `folder`.

    Raises:
        UserError: When data/train is absent, or a class would have no image in one part.
    """
    source = index_folder(Path(data) / "train")
    sides = {"train": set(), "val": set()}
    for path, label in zip(source.paths, source.labels, strict=True):
        side = "val" if is_held_out(path, one_in) else "train"
        sides[side].add(label)
        link = folder / side / path
        link.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.abspath(source.root / path)
        if not link.is_symlink() or os.readlink(link) != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    if len(sides["train"]) != len(source.classes) or sides["train"] != sides["val"]:
        raise UserError(f"{data}/train: too few images to hold out one in {one_in} of every class; use a larger set")
    return folder
