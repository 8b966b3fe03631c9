"""Draw a finished run's detections on its test images: ground truth on the left, detections on the right.

python detection/visualize.py OUTPUT_DIR OUT.png [--images 6] [--min-score 0.3]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image, ImageDraw

from adco.utils.errors import UserError, command
from adco.utils.files import atomic_write

TRUTH, DETECTION = (40, 200, 80), (255, 120, 0)  # colours
WIDTH_PX = 320
XYWH = 1  # detectron2's BoxMode: 0 is (x0, y0, x1, y1), 1 is (x, y, width, height)

Box = tuple[tuple[float, float, float, float], str]  # (x0, y0, x1, y1) in pixels of the image, and its label


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the boxes of the chosen test images into one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path, help="OUTPUT_DIR of detection/train_net.py")
    parser.add_argument("out", type=Path, metavar="OUT.png")
    parser.add_argument("--images", type=int, default=6, help="how many, spread evenly over the test list")
    parser.add_argument("--min-score", type=float, default=0.3)
    args = parser.parse_args(argv)
    drawn = draw_run(args.output_dir, args.out, args.images, args.min_score)
    print(f"wrote {args.out}: {drawn} detections of score {args.min_score} or more")
    return 0


def draw_run(output_dir: Path, out: Path, images: int = 6, min_score: float = 0.3, per_image: int = 8) -> int:
    """Write a PNG of test images with their true boxes and detections, side by side.

    Args:
        output_dir: OUTPUT_DIR of a finished run.
        out: The PNG to write.
        images: Number of test images, spread evenly over the test list.
        min_score: Smallest score of a detection that is drawn.
        per_image: Largest number of detections of an image.

    Returns:
        Number of detections that were drawn.

    Raises:
        UserError: There are no detections of a finished run, or the dataset is missing.
    """
    drawn = drawings(output_dir, images, min_score, per_image)
    with atomic_write(out) as file:
        side_by_side([(one.truth, one.found) for one in drawn]).save(file, format="PNG")
    return sum(one.count for one in drawn)


@dataclass(frozen=True)
class Drawing:
    """A test image with its true boxes (`truth`) and with `count` detections (`found`)."""

    name: str
    truth: Image.Image
    found: Image.Image
    count: int


def drawings(output_dir: Path, images: int = 6, min_score: float = 0.3, per_image: int = 8) -> list[Drawing]:
    """The images of `draw_run`; arguments and errors as there. Runs on the same dataset get the same test images."""
    dataset, detections = load_run(Path(output_dir))
    from detectron2.data import DatasetCatalog, MetadataCatalog

    try:
        metadata, entries = MetadataCatalog.get(dataset), DatasetCatalog.get(dataset)
    except OSError as error:
        raise UserError(f"{dataset}: {error.filename} is missing; set DETECTRON2_DATASETS as the run had it") from error
    classes = metadata.thing_classes
    to_class = metadata.get("thing_dataset_id_to_contiguous_id", {})  # COCO numbers its categories with gaps
    by_image = defaultdict(list)
    for item in sorted(detections, key=lambda item: -item["score"]):
        if item["score"] >= min_score:
            label = f"{classes[to_class.get(item['category_id'], item['category_id'])]} {item['score']:.2f}"
            by_image[str(item["image_id"])].append((_corners(item["bbox"], XYWH), label))
    drawn, count = [], min(max(images, 1), len(entries))
    for entry in (entries[k * len(entries) // count] for k in range(count)):
        truth = [(_corners(box["bbox"], box["bbox_mode"]), classes[box["category_id"]]) for box in entry["annotations"]]
        detected = by_image[str(entry["image_id"])][:per_image]
        image, name = Image.open(entry["file_name"]).convert("RGB"), Path(entry["file_name"]).name
        pair = with_boxes(image, truth, TRUTH), with_boxes(image, detected, DETECTION)
        drawn.append(Drawing(name, *pair, len(detected)))
    return drawn


def load_run(output_dir: Path) -> tuple[str, list[dict]]:
    """Name of the first test dataset and the detections of a finished run; of several trials, those of the first.

    Raises:
        UserError: The folder has no detections of a finished run.
    """
    import detection  # noqa: F401  (patches before detectron2)
    from detection.config import load_config
    from detection.evaluation import DETECTIONS_FILE

    output_dir = output_dir / "trial_1" if (output_dir / "trial_1").is_dir() else output_dir
    path = output_dir / "inference" / DETECTIONS_FILE
    if not path.is_file():
        raise UserError(f"{path}: no predictions; give the OUTPUT_DIR of a finished detection/train_net.py")
    cfg = load_config(str(output_dir / "config.yaml"), [])
    return cfg.DATASETS.TEST[0], json.loads(path.read_text())


def with_boxes(image: Image.Image, boxes: Iterable[Box], colour: tuple[int, int, int]) -> Image.Image:
    """A copy of the image, resized to WIDTH_PX, with the boxes and their labels; boxes in pixels of the given image."""
    scale = WIDTH_PX / image.width
    canvas = image.resize((WIDTH_PX, round(image.height * scale)))
    pen = ImageDraw.Draw(canvas)
    for corners, label in boxes:
        x0, y0, x1, y1 = (value * scale for value in corners)
        pen.rectangle((x0, y0, max(x1, x0), max(y1, y0)), outline=colour, width=2)
        background = pen.textbbox((x0 + 2, y0 + 1), label)
        pen.rectangle(background, fill=colour)
        pen.text((x0 + 2, y0 + 1), label, fill=(0, 0, 0))
    return canvas


def side_by_side(rows: Sequence[tuple[Image.Image, Image.Image]], columns: int = 2) -> Image.Image:
    """One image of all pairs (left, right) of images WIDTH_PX wide, `columns` pairs in a row."""
    gap = 6
    height = max(left.height for left, _ in rows) + gap
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * (2 * WIDTH_PX + 2 * gap), lines * height), "white")
    for number, (left, right) in enumerate(rows):
        x, y = (number % columns) * (2 * WIDTH_PX + 2 * gap), (number // columns) * height
        sheet.paste(left, (x, y))
        sheet.paste(right, (x + WIDTH_PX + 2, y))
    return sheet


def _corners(box: Sequence[float], mode: int) -> tuple[float, float, float, float]:
    a, b, c, d = (float(value) for value in box)
    return (a, b, a + c, b + d) if int(mode) == XYWH else (a, b, c, d)


if __name__ == "__main__":
    sys.exit(main())
