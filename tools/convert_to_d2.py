"""Convert a pretraining checkpoint into the pickle that detectron2 trains from, and prove the conversion.

python tools/convert_to_d2.py CHECKPOINT OUT.pkl [--no-verify]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.errors import command


@command
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    # After the parser and detection first: --help needs no torch, and a missing detectron2 is told at once.
    from detection.weights import to_detectron2, write_weights  # isort: skip
    from adco.backbone import load_backbone

    backbone = load_backbone(args.checkpoint)
    print(f"{backbone.name}: {backbone.arch}, {len(backbone.state)} tensors, layout {backbone.source}")
    if backbone.dropped:
        print(f"left out, named by the layout: {len(backbone.dropped)} tensors ({backbone.dropped[0]}, ...)")

    def verify(written: Path) -> None:
        from detection.verify import TOLERANCE, check_differences, stage_differences

        differences = stage_differences(written, backbone)
        for stage, value in differences.items():
            print(f"{stage}: worst difference from torchvision {value:.1e}")
        check_differences(differences, max(TOLERANCE.values()))

    write_weights(to_detectron2(backbone), backbone.describe(), args.out, verify if args.verify else None)
    print(f"wrote {args.out}" + ("" if args.verify else " (not verified)"))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", help="a file of this project, AdCo, CaCo, MoCo or torchvision, or random:ARCH[:SEED]"
    )
    parser.add_argument("out", type=Path, metavar="OUT.pkl")
    parser.add_argument(
        "--verify", action=argparse.BooleanOptionalAction, default=True,
        help="compare detectron2's res2..res5 with torchvision's layer1..layer4 before the file takes its name",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
