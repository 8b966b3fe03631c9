"""ImageNet (or any folder with train/CLASS and val/CLASS): linear classifiers on the frozen backbone, and few labels.

python transfer/imagenet.py --checkpoint CHECKPOINT --data IMAGENET --protocol adco --output-dir results
torchrun --nproc-per-node 8 transfer/imagenet.py ... trains on eight ranks and gives the same result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run from a checkout, without installation

from adco.data.images import ImageIndex
from adco.utils import distributed
from adco.utils.errors import command
from adco.utils.files import output_folder, write_text
from transfer.classifier.command import run_protocol
from transfer.classifier.dataset import labelled
from transfer.classifier.label_subsets import drawn_list, list_sha256, only, read_list
from transfer.classifier.protocols import IMAGENET, SEMI_PERCENT
from transfer.cli import add_protocols, add_training, make_parser, require_paths, select_protocols
from transfer.features.image_folder import described, read_folders


def few_labels(args: argparse.Namespace, name: str, train: ImageIndex) -> tuple[ImageIndex, dict[str, object]]:
    """Restrict the training images to the labelled share of a semi-supervised protocol, and write the list of them.

    Returns:
        The labelled images, and what a record says of them.

    Raises:
        UserError: --labels-list cannot be read, or names an image that is not there.
    """
    if args.labels_list:
        paths, source = read_list(args.labels_list, train), args.labels_list.name
    else:
        paths, source = drawn_list(train, SEMI_PERCENT[name], args.seed), f"drawn with seed {args.seed}"
    out = output_folder(args.output_dir) / f"labels-{SEMI_PERCENT[name]:g}pct.txt"
    if distributed.rank() == 0:
        write_text(out, "".join(f"{path}\n" for path in paths))
    return only(train, paths), {"labels": source, "labels_sha256": list_sha256(paths), "labelled_images": len(paths)}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Train and evaluate every protocol that was asked for, and write a record for each."""
    parser = make_parser(__doc__, "a folder with train/CLASS/IMAGE and val/CLASS/IMAGE")
    add_protocols(parser, "adco")
    add_training(parser)
    parser.add_argument("--labels-list", type=Path, metavar="FILE",
                        help="semi1, semi10: the labelled images, one a line (else drawn by --seed)")  # fmt: skip
    args = parser.parse_args(argv)
    names = select_protocols(args.protocol, "adco", {name: protocol.about for name, protocol in IMAGENET.items()})
    if not names:
        return 0
    require_paths(args)
    folders = read_folders(args.data)
    train, val = folders
    data_facts = described(args.data, folders)
    for name in names:
        part, settings = few_labels(args, name, train) if name in SEMI_PERCENT else (train, {})
        counts = {"train_images": len(part), "val_images": len(val)}
        data, val_data = labelled(part, "train"), labelled(val, "val")
        run_protocol(args, IMAGENET[name], data, val_data, data_facts | counts, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
