"""Make one page of records, curves and images: a self-contained HTML file, Markdown and CSV.

Protocols never share a column. Published values, measured ones and what was not run are marked as such.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adco import report
from adco.report import model_zoo
from adco.utils.errors import UserError, command
from adco.utils.files import between, output_folder, write_text

EXAMPLES = """\
examples:
  python tools/report.py results -o report
  # name the models, add their pretraining, and draw what two detectors find on the same images
  python tools/report.py random=out/random adco=out/adco output/adco --detections random=out/random/voc \\
      --detections adco=out/adco/voc -o report
  # may these two be compared? why not? is the difference more than chance?
  python tools/report.py --compare results/adco_r18_imagenette/knn-k20-t0.07@64px.json \\
      results/random_r18/knn-k20-t0.07@64px.json
  python tools/report.py --compare adco-4/AdCo/sample_AP adco-4/SwAV/mAP
  python tools/report.py --zoo MODEL_ZOO.md --readme README.md
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, or with --zoo the model zoo, or with --compare print a comparison."""
    args = make_parser().parse_args(argv)
    if args.zoo:
        pages = {args.zoo: model_zoo.page(args.results)}
        if args.readme:
            pages[args.readme] = between(args.readme, *model_zoo.README_TABLE, model_zoo.readme_table(args.results))
        for path, text in pages.items():
            write_text(path, text)
            print(f"wrote {path}")
        return 0
    if args.compare:
        print("\n".join(report.compared(*args.compare)))
        return 0
    if not args.sources:
        raise UserError("no RESULTS; give folders with records, for example: tools/report.py results -o report")
    study = report.gather(args.sources)
    out = output_folder(args.output)
    images = detections(args.detections, args.images, args.min_score)
    reported = (
        f"Boxes: green the truth, orange found with a score of at least {args.min_score}; evenly chosen test images."
    )
    made = report.build(study, out, args.title, args.lead, not args.no_papers, images, reported)
    for path in report.write(made, out):
        print(f"wrote {path}")
    for path, reason in study.broken:
        print(f"not read: {path}: {reason}", file=sys.stderr)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sources", nargs="*", metavar="RESULTS", help="folders or files with records and metrics.jsonl, or NAME=FOLDER"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("report"), help="folder (default: %(default)s)")
    parser.add_argument("--title", default="Results", help="of the page (default: %(default)s)")
    parser.add_argument("--lead", default="", metavar="TEXT", help="the text under the title")
    parser.add_argument("--no-papers", action="store_true", help="leave the papers' tables out")
    parser.add_argument(
        "--detections", action="append", default=[], metavar="NAME=DIR",
        help="draw what the run in DIR, an OUTPUT_DIR of detection/train_net.py, found; give two to compare",
    )  # fmt: skip
    parser.add_argument("--images", type=int, default=4, help="test images to draw on (default: %(default)s)")
    parser.add_argument("--min-score", type=float, default=0.3, help="of a drawn detection (default: %(default)s)")
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"),
        help="instead, say whether two numbers may be compared and how sure their difference is: each a record's file, "
        "or TABLE/METHOD/METRIC of a published one, as adco-4/SwAV/mAP",
    )  # fmt: skip
    parser.add_argument("--zoo", type=Path, metavar="FILE", help="instead, write MODEL_ZOO.md")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="with --zoo: its table of our own models, too")
    parser.add_argument("--results", type=Path, default=ROOT / "results", help="MODEL/RECORD.json below it, for --zoo")
    return parser


def detections(runs: Sequence[str], images: int, min_score: float) -> Mapping[str, list[tuple[str, bytes]]]:
    """Draw detections on test images.

    Args:
        runs: NAME=DIR or DIR, where DIR is the OUTPUT_DIR of a detector.
        images: How many test images.
        min_score: The lowest score of a drawn detection.

    Returns:
        For each test image pairs of a title and a PNG: the true boxes, then the detections of each run.
    """
    tiles_of: dict[str, list[tuple[str, bytes]]] = {}
    for run in runs:
        from detection.visualize import drawings  # detectron2, for those who want it

        name, equals, folder = run.partition("=")
        for drawn in drawings(Path(folder if equals else run), images, min_score):
            tiles = tiles_of.setdefault(drawn.name, [("ground truth", _png(drawn.truth))])
            tiles.append((f"{name if equals else Path(run).name}: {drawn.count} found", _png(drawn.found)))
    return tiles_of


def _png(image) -> bytes:
    with io.BytesIO() as file:
        image.save(file, format="PNG", optimize=True)
        return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
