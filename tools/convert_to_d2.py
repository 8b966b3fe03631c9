"""Convert a ResNet checkpoint of any public layout for detectron2, or a detectron2 file back, and verify it.

python tools/convert_to_d2.py CHECKPOINT OUT.pkl     for detectron2
python tools/convert_to_d2.py CHECKPOINT OUT.pth     torchvision's names, from detectron2's too; also OUT.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.utils.errors import UserError, command

TARGETS = {".pkl": "detectron2", ".pth": "torchvision", ".safetensors": "torchvision"}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Convert, verify and print what was done."""
    args = parser().parse_args(argv)
    target = args.to or TARGETS.get(args.out.suffix)
    if target is None:
        raise UserError(f"{args.out}: end it in .pkl for detectron2, .pth or .safetensors for torchvision")
    # After the parser: --help needs no torch. detection first: a missing detectron2 is reported at once.
    from detection.convert import convert  # isort: skip
    from adco.weights.backbone import load_backbone
    from adco.weights.zoo import resolve

    say = (lambda *_: None) if args.json else print
    backbone = load_backbone(args.checkpoint, args.source)
    say(f"{backbone.name}: {backbone.arch}, {len(backbone.state)} tensors, layout {backbone.source}")
    for reason, names in by_reason(backbone.dropped).items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        say(f"dropped {len(names)}, {reason}: {', '.join(names[:3])}{more}")
    source_file = resolve(args.checkpoint) if backbone.source == "detectron2" else None
    notes, differences = convert(backbone, target, args.out, args.verify, source_file)
    for note in notes:
        say(note)
    for dtype, stages in differences.items():
        say(f"worst difference, {dtype}: " + ", ".join(f"{stage} {value:.1e}" for stage, value in stages.items()))
    say(f"wrote {args.out}" + ("" if args.verify else " (not verified)"))
    if args.json:
        facts = {"tensors": len(backbone.state), "to": target, "out": str(args.out), "verified": args.verify}
        facts |= {"dropped": by_reason(backbone.dropped), "notes": notes, "worst_difference": differences}
        print(json.dumps(backbone.describe() | facts, indent=2))
    return 0


def by_reason(dropped: Mapping[str, str]) -> dict[str, list[str]]:
    """The names by reason, of reasons by name."""
    names: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        names.setdefault(reason, []).append(name)
    return names


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint", help="a file of any layout that docs/detection.md lists, zoo://NAME, or random:ARCH[:SEED]"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="X.pkl, X.pth or X.safetensors")
    parser.add_argument("--source", metavar="LAYOUT", help="read the file as this layout (default: recognised)")
    parser.add_argument("--to", choices=("detectron2", "torchvision"), help="(default: by OUT's ending)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument(
        "--verify", action=argparse.BooleanOptionalAction, default=True,
        help="compare detectron2's res2..res5 with torchvision's layer1..layer4 before the file takes its name",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
