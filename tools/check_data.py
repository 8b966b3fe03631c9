"""Check datasets before a long run: counts beside the official ones, missing and broken files.

python tools/check_data.py FOLDER ...      VOCdevkit, coco, places205 or imagenet folders, or a folder that holds them

Exit code 0 when all files are intact, 2 when one is missing or broken. A smaller set is no error, except with
--official. docs/data.md shows the layouts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.data.datasets.check import check_folder
from adco.utils.errors import UserError, command

SHOWN = 5


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print what is in the folders; raise UserError for missing or broken files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--decode", default="200", metavar="N", help="images of each split to decode, or `all` (200)")
    parser.add_argument("--official", action="store_true", help="fail where a count is not the official one")
    args = parser.parse_args(argv)
    if args.decode != "all" and not args.decode.isdigit():
        raise UserError(f"--decode {args.decode}: expected a number of images, or all")
    sample = None if args.decode == "all" else int(args.decode)
    splits = [split for folder in args.folders for split in check_folder(folder, sample)]
    for split in splits:
        print(split.describe() + ("" if split.official else "   not the official set"))
        for line in (*split.faults[:SHOWN], *split.notes):
            print(f"  {line}")
        if len(split.faults) > SHOWN:
            print(f"  and {len(split.faults) - SHOWN} more")
    faults = sum(len(split.faults) for split in splits)
    others = [split.name for split in splits if args.official and not split.official]
    if faults or others:
        wrong = [f"{faults} files are missing or broken"] if faults else []
        wrong += [f"not official: {', '.join(others)}"] if others else []
        raise UserError("; ".join(wrong))
    return 0


if __name__ == "__main__":
    sys.exit(main())
