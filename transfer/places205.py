"""Places205: linear classifiers on the frozen backbone, from the original lists or from image folders.

python transfer/places205.py --checkpoint CHECKPOINT --data PLACES205 --protocol vissl --output-dir results
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run from a checkout, without installation

import numpy as np

from adco.data.datasets.annotations import places_list
from adco.utils.errors import UserError, command
from transfer.classifier.command import chosen, listed, run_recipe
from transfer.classifier.dataset import Labelled
from transfer.classifier.protocols import PLACES205
from transfer.cli import add_protocols, add_training, make_parser, require_paths
from transfer.features.image_folder import fingerprint, read_folders
from transfer.features.reading import ImageList

IMAGES = Path("data/vision/torralba/deeplearning/images256")
LISTS = Path("trainvalsplit_places205")


def read_places(data: Path) -> tuple[Labelled, Labelled, str]:
    """Training and validation images, and a fingerprint: the original layout, else train/CLASS and val/CLASS.

    Raises UserError for a folder that is neither, and for a list's line that is not `PATH LABEL`.
    """
    if (data / LISTS).is_dir():
        digest = hashlib.sha256()
        parts = [_from_list(data, name, digest) for name in ("train", "val")]
        classes = tuple(str(label) for label in range(1 + max(int(part[1].max()) for part in parts)))
        if unexpected := sorted(set(parts[1][1].tolist()) - set(parts[0][1].tolist())):
            raise UserError(
                f"{data / LISTS}: label {unexpected[0]} is in val_places205.csv, but not in train_places205.csv"
            )
        train, val = (Labelled(images, labels, classes) for images, labels in parts)
        return train, val, digest.hexdigest()
    if not (data / "train").is_dir():
        raise UserError(f"{data}: no Places205 in it; expected {LISTS}/train_places205.csv and {IMAGES}, or "
                        "train/CLASS/IMAGE and val/CLASS/IMAGE")  # fmt: skip
    folders = read_folders(data)
    train, val = (
        Labelled(ImageList(index.root, index.paths, name), np.array(index.labels), index.classes)
        for index, name in zip(folders, ("train", "val"), strict=True)
    )
    return train, val, fingerprint(folders)


def _from_list(data: Path, name: str, digest) -> tuple[ImageList, np.ndarray]:
    path = data / LISTS / f"{name}_places205.csv"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the list cannot be read ({error.strerror}); both lists are needed") from error
    digest.update(f"{path.name}\0".encode() + content)
    paths, labels = places_list(path, content)
    if not os.path.isfile(data / IMAGES / paths[0]):
        raise UserError(f"{path}: lists {paths[0]}, but {data / IMAGES / paths[0]} does not exist")
    return ImageList(data / IMAGES, tuple(paths), name), np.array(labels)


@command
def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__, "Places205 in its original layout, or train/CLASS/IMAGE and val/CLASS/IMAGE")
    add_protocols(parser, "vissl")
    add_training(parser)
    args = parser.parse_args(argv)
    if listed(args, PLACES205):
        return 0
    wanted = chosen(args.protocol or ["vissl"], PLACES205)
    require_paths(args)
    train, val, digest = read_places(args.data)
    about = {"name": "Places205", "fingerprint": digest, "classes": len(train.classes), "train_images": len(train)}
    about |= {"val_images": len(val), "official": (len(train.classes), len(val)) == (205, 20_500)}
    for _, recipe in wanted:
        run_recipe(args, recipe, train, val, about, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
