"""What the commands of the benchmarks share: their arguments, the objects made of them, and the writing of records."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

from adco.data.transforms.functional import MEAN, STD
from adco.evaluation.provenance import code_version
from adco.evaluation.records import Predictions, Record
from adco.utils.device import parse_workers, resolve_device, resolve_workers, set_arithmetic
from adco.utils.errors import UserError
from adco.utils.files import output_folder
from adco.weights.backbone import Backbone, load_backbone
from transfer.classifier.state import TrainingSetup
from transfer.features.extract import Extraction, Feature, Reader, extract
from transfer.features.reading import ImageList
from transfer.features.transforms import CROP_PX, RESIZE_PX, Transform


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UserErrors, one line each."""

    def error(self, message: str) -> NoReturn:
        """Raise the message as a UserError."""
        raise UserError(f"{message}; see --help")


def make_parser(description: str | None, data_help: str) -> Parser:
    """Make a parser with the arguments of every frozen-feature benchmark; `data_help` explains --data."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", metavar="PATH", help="a checkpoint file, zoo://NAME, or random:ARCH[:SEED]")
    parser.add_argument("--data", metavar="FOLDER", type=Path, help=data_help)
    parser.add_argument("--output-dir", metavar="FOLDER", type=Path, help="where the records (JSON) are written")
    parser.add_argument(
        "--cache-dir", metavar="FOLDER", type=Path, help="where features are cached (OUTPUT_DIR/features)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX (auto)")
    workers = "threads that read images (auto: the cores but one, at most 8 without a GPU)"
    parser.add_argument("--workers", type=parse_workers, default="auto", help=workers)
    parser.add_argument("--batch-size", type=_at_least(1), default=64, help="images per forward pass (64)")
    parser.add_argument(
        "--image-px",
        type=_at_least(1),
        help="network input size; other than 224 makes another protocol, named ...@128px (224)",
    )
    parser.add_argument("--resize-px", type=_at_least(1), help="size of the first resize (IMAGE_PX x 256 / 224)")
    parser.add_argument("--max-bad-share", type=_share, default=0.0, help="share of unreadable images to skip (0)")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="seed of everything the protocol leaves open (0)")
    return parser


def add_protocols(parser: argparse.ArgumentParser, default: str, more: str = "") -> None:
    """Add --protocol, which may be repeated; `--protocol list` explains the protocols. `more` is added to its help."""
    more = f"; {more}" if more else ""
    text = f"a protocol by name, may be repeated; list explains each in two lines{more} ({default})"
    parser.add_argument("--protocol", action="append", metavar="NAME", help=text)


def select_protocols(
    given: Sequence[str] | None, default: str, about: Mapping[str, str], also: Sequence[str] = ()
) -> list[str]:
    """Check the names given with --protocol, or print an explanation of all of them for `--protocol list`.

    Args:
        given: the names, None for the default one.
        default: the protocol that is run when none is given.
        about: two lines on each protocol.
        also: further names that are allowed, e.g. `all`.

    Returns:
        The names, each once; empty when the explanation was asked for, and nothing is to be run.

    Raises:
        UserError: a name is not known.
    """
    names = list(dict.fromkeys(given or [default]))
    if "list" in names:
        indent = "\n  "
        print("\n".join(f"{name}{indent}{text.replace(chr(10), indent)}" for name, text in about.items()))
        return []
    for name in names:
        if name not in (*about, *also):
            raise UserError(f"--protocol {name}: not known; choose {', '.join(about)}, or list for an explanation")
    return names


@dataclass(frozen=True)
class BenchmarkRun:
    """The shared arguments, checked: what is evaluated, how images are read, and where results are written.

    Attributes:
        backbone: the checkpoint.
        reader: device, threads and batch of the feature extraction.
        output_dir: where records are written.
        cache_dir: where features are cached.
        crop_px: side of the network's input, in pixels.
        resize_px: size of the first resize, in pixels.
        seed: the seed of everything that a protocol leaves open.
        standard: the protocol's own (crop_px, resize_px).
    """

    backbone: Backbone
    reader: Reader
    output_dir: Path
    cache_dir: Path
    crop_px: int
    resize_px: int
    seed: int
    standard: tuple[int, int] = (CROP_PX, RESIZE_PX)

    def transform(self, fit: str) -> Transform:
        """Make a protocol's test transform at this run's image size."""
        return Transform(fit, self.crop_px, self.resize_px)

    def protocol(self, name: str) -> str:
        """Add the image size to a protocol's name when it is not the protocol's own: `pcl@128px-resize160`."""
        if (self.crop_px, self.resize_px) == self.standard:
            return name
        odd_resize = "" if self.resize_px == usual_resize(self.crop_px, self.standard) else f"-resize{self.resize_px}"
        return f"{name}@{self.crop_px}px{odd_resize}"

    def extract(self, images: ImageList, features: Sequence[Feature]) -> Extraction:
        """Extract features (`transfer.features.extract.extract`) and print what was done.

        The output folder is created first, so that an error of its path costs no time.
        """
        output_folder(self.output_dir)
        output_folder(self.cache_dir)
        done = extract(self.backbone, images, features, self.cache_dir, self.reader)
        if done.computed:
            print(f"{images.name}: features of {done.computed} images in {done.seconds:.1f} s "
                  f"({done.computed / done.seconds:.0f} images/s)")  # fmt: skip
        else:
            print(f"{images.name}: features of {len(done.kept)} images from the cache")
        if done.unreadable:
            print(f"{images.name}: {len(done.unreadable)} unreadable images skipped: {', '.join(done.unreadable)}")
        return done

    def write_record(
        self,
        protocol: str,
        scores: Mapping[str, float],
        data: Mapping[str, object],
        settings: Mapping[str, object],
        duration_seconds: float,
        write_predictions: Callable[[Path], Predictions] | None = None,
    ) -> Path:
        """Write one record into the output folder.

        Args:
            protocol: name without image size; `a/b` is written as `a-b.json`.
            scores: by name, in percent where papers give percent.
            data: what the record says of the data.
            settings: settings of the protocol; those that all benchmarks share are added.
            duration_seconds: how long the evaluation took.
            write_predictions: writes the predictions of all images to the path that it is given, beside the record.

        Returns:
            The record's path.
        """
        shared = {
            "image_px": self.crop_px,
            "resize_px": self.resize_px,
            "pixel_mean": MEAN,
            "pixel_std": STD,
            "seed": self.seed,
            "batch_size": self.reader.batch_size,
            "device": str(self.reader.device),
            "precision": "float32",
        }
        path = self.output_dir / f"{self.protocol(protocol).replace('/', '-')}.json"
        record = Record(
            self.protocol(protocol),
            scores,
            self.backbone.describe(),
            data,
            {**shared, **settings},
            round(duration_seconds, 3),
            predictions=write_predictions(path.with_suffix(".npz")) if write_predictions else None,
        )
        record.write(path)
        print(f"wrote {path}")
        return path


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of protocols that train. What differs from the protocol's own value is added to its name."""
    parser.add_argument("--epochs", type=_at_least(1), help="train shorter or longer, the schedule in proportion")
    parser.add_argument("--train-batch", type=_at_least(2), help="images a step over all ranks, rates in proportion")
    parser.add_argument("--evaluations", type=_at_least(1), default=10, help="evaluations on val during training (10)")
    parser.add_argument("--bf16", action="store_true", help="run the backbone under bfloat16 autocast")


def make_setup(args: argparse.Namespace, run: BenchmarkRun, device: torch.device, name: str) -> TrainingSetup:
    """Make the setup of a protocol that trains. It saves its state in OUTPUT_DIR/NAME and resumes from it."""
    folder = output_folder(run.output_dir / name.replace("/", "-"))
    return TrainingSetup(
        device, run.reader.workers, run.crop_px, run.resize_px, folder, run.seed, args.evaluations,
        args.bf16, run.reader.max_bad_share,
    )  # fmt: skip


def require_paths(args: argparse.Namespace) -> None:
    """Raise UserError for the first of --checkpoint, --data and --output-dir that is not given."""
    for name in ("checkpoint", "data", "output_dir"):
        if getattr(args, name) is None:
            raise UserError(f"--{name.replace('_', '-')} is required; see --help")


def make_job(args: argparse.Namespace) -> BenchmarkRun:
    """Check the shared arguments and read the checkpoint. Writes nothing.

    Raises:
        UserError: an argument is missing or makes no sense, or the checkpoint cannot be read.
    """
    require_paths(args)
    code_version("transfer")  # of the files as they are now: the record names it when the work is done
    crop_px = args.image_px or CROP_PX
    resize_px = args.resize_px or usual_resize(crop_px)
    Transform("center", crop_px, resize_px)  # raises for sizes that make no sense
    device = resolve_device(args.device)
    set_arithmetic(device)
    reader = Reader(device, resolve_workers(args.workers, device), args.batch_size, args.max_bad_share)
    backbone = load_backbone(args.checkpoint)
    cache_dir = args.cache_dir or args.output_dir / "features"
    return BenchmarkRun(backbone, reader, args.output_dir, cache_dir, crop_px, resize_px, args.seed)


def usual_resize(crop_px: int, standard: tuple[int, int] = (CROP_PX, RESIZE_PX)) -> int:
    """The first resize, in pixels, that keeps a protocol's proportion; that of most protocols is 256 to 224."""
    return round(crop_px * standard[1] / standard[0])


def skipped(done: Extraction) -> dict[str, object]:
    """What a record says of unreadable images: their number, and the first twenty with the reasons."""
    return {"count": len(done.unreadable), "files": dict(sorted(done.unreadable.items())[:20])}


def _at_least(low: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{text} is below {low}")
        return value

    return whole_number


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value
