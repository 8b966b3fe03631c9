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
from adco.data.datasets.layouts import PLACES_IMAGES, PLACES_LISTS
from adco.utils.errors import UserError, command
from transfer.classifier.command import run_protocol
from transfer.classifier.dataset import Labelled, labelled
from transfer.classifier.protocols import PLACES205
from transfer.cli import add_protocols, add_training, make_parser, require_paths, select_protocols
from transfer.features.image_folder import fingerprint, read_folders
from transfer.features.reading import ImageList


def read_places(data: Path) -> tuple[Labelled, Labelled, str]:
    """Read Places205 in its original layout, or else as train/CLASS/IMAGE and val/CLASS/IMAGE.

    Returns:
        The training images, the validation images, and a fingerprint of both.

    Raises:
        UserError: the folder has neither layout, or a list has a line that is not `PATH LABEL`.
    """
    if (data / PLACES_LISTS).is_dir():
        digest = hashlib.sha256()
        (train, train_labels), (val, val_labels) = (_from_list(data, name, digest) for name in ("train", "val"))
        if unexpected := sorted(set(val_labels.tolist()) - set(train_labels.tolist())):
            raise UserError(
                f"{data / PLACES_LISTS}: label {unexpected[0]} is in val_places205.csv, but not in train_places205.csv"
            )
        classes = tuple(str(label) for label in range(1 + int(train_labels.max())))
        return Labelled(train, train_labels, classes), Labelled(val, val_labels, classes), digest.hexdigest()
    if not (data / "train").is_dir():
        raise UserError(
            f"{data}: no Places205 in it; expected {PLACES_LISTS}/train_places205.csv and {PLACES_IMAGES}, "
            "or train/CLASS/IMAGE and val/CLASS/IMAGE"
        )
    train, val = folders = read_folders(data)
    return labelled(train, "train"), labelled(val, "val"), fingerprint(folders)


def _from_list(data: Path, name: str, digest: hashlib._Hash) -> tuple[ImageList, np.ndarray]:
    """The images and labels (N,) of one list; its bytes are added to the digest."""
    path = data / PLACES_LISTS / f"{name}_places205.csv"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: the list cannot be read ({error.strerror}); both lists are needed") from error
    digest.update(f"{path.name}\0".encode() + content)
    paths, labels = places_list(path, content)
    if not os.path.isfile(data / PLACES_IMAGES / paths[0]):
        raise UserError(f"{path}: lists {paths[0]}, but {data / PLACES_IMAGES / paths[0]} does not exist")
    return ImageList(data / PLACES_IMAGES, tuple(paths), name), np.array(labels)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate every protocol that was asked for, and write a record for each."""
    parser = make_parser(__doc__, "Places205 in its original layout, or train/CLASS/IMAGE and val/CLASS/IMAGE")
    add_protocols(parser, "vissl")
    add_training(parser)
    args = parser.parse_args(argv)
    names = select_protocols(args.protocol, "vissl", {name: protocol.about for name, protocol in PLACES205.items()})
    if not names:
        return 0
    require_paths(args)
    train, val, digest = read_places(args.data)
    facts = {"name": "Places205", "fingerprint": digest, "classes": len(train.classes), "train_images": len(train)}
    facts |= {"val_images": len(val), "official": (len(train.classes), len(val)) == (205, 20_500)}
    for name in names:
        run_protocol(args, PLACES205[name], train, val, facts, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
