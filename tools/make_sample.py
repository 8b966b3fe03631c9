"""Draw a small world of 20 classes in the layouts of ImageNet, VOC, COCO and Places205, to try every tool on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.sample import make_sample
from adco.utils.errors import command

WHAT_IS_WRITTEN = """
what is written (N = --images):
  OUT/imagenet/{train,val}/CLASS/*.jpg                 N and N/5 images of one main object, 20 classes
  OUT/VOCdevkit/VOC2007                                N/5 trainval and N/5 test, several objects each, boxes in XML
  OUT/VOCdevkit/VOC2012                                N/10 trainval
  OUT/coco/{train,val}2017, OUT/coco/annotations       N/5 and N/10, boxes and polygons in COCO's JSON
  OUT/places205                                        N/5 and N/10 views of 8 scenes: a subset of the 205, labels 0..7
  OUT/sample.json                                      written last, when the sample is complete

The same seed gives the same bytes; a larger N adds images without changing the earlier ones. After an interruption
run it again: it starts anew in the same folder. A folder with other content is refused.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the sample and print the counts."""
    parser = argparse.ArgumentParser(
        "make_sample.py",
        description=__doc__,
        epilog=WHAT_IS_WRITTEN,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="a new or empty folder")
    parser.add_argument("--seed", type=int, required=True, metavar="S", help="determines the world; from 0")
    parser.add_argument(
        "--images",
        type=int,
        default=2000,
        metavar="N",
        help="images in ImageNet's training set, at least 100 (default 2000)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(4, os.cpu_count() or 1),
        metavar="W",
        help="processes that draw (default: up to 4)",
    )
    args = parser.parse_args(argv)
    summary = make_sample(args.out, args.seed, args.images, args.workers, progress=True)
    for name, count in summary.counts.items():
        print(f"{name:18s} {count:6d} images")
    if summary.already_there:
        print(f"{summary.out}: already there, finished, with seed {summary.seed}; nothing to do")
    else:
        print(f"{summary.out}: {sum(summary.counts.values())} images in {summary.seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
