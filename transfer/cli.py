"""What the benchmarks' command lines share: their arguments, what these become, and how records are written."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adco.data.transforms.functional import MEAN, STD
from adco.evaluation.provenance import code_version
from adco.evaluation.records import Predictions, Record, Score
from adco.utils.device import parse_workers, resolve_device, resolve_workers, set_arithmetic
from adco.utils.errors import UserError
from adco.utils.files import output_folder
from adco.weights.backbone import Backbone, load_backbone
from transfer.classifier.engine import TrainingSetup
from transfer.features.extract import Extraction, Feature, Reader, extract
from transfer.features.reading import ImageList
from transfer.features.transforms import CROP_PX, RESIZE_PX, Transform


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are UserErrors, one line each."""

    def error(self, message: str):
        raise UserError(f"{message}; see --help")


def make_parser(description: str, data_help: str) -> Parser:
    """A parser with the arguments of every frozen-feature benchmark."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", metavar="PATH", help="a checkpoint file, zoo://NAME, or random:ARCH[:SEED]")
    parser.add_argument("--data", metavar="FOLDER", type=Path, help=data_help)
    parser.add_argument("--output-dir", metavar="FOLDER", type=Path, help="where the records (JSON) go")
    parser.add_argument(
        "--cache-dir", metavar="FOLDER", type=Path, help="where features are kept (OUTPUT_DIR/features)"
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
    parser.add_argument("--seed", type=_at_least(0), default=0, help="seed of whatever the protocol leaves open (0)")
    return parser


def add_protocols(parser: argparse.ArgumentParser, default: str, more: str = "") -> None:
    """--protocol, which may be repeated; `list` explains them."""
    more = f"; {more}" if more else ""
    text = f"a protocol by name, may be repeated; list explains each in two lines{more} ({default})"
    parser.add_argument("--protocol", action="append", metavar="NAME", help=text)


def explain(about: Mapping[str, str]) -> str:
    """What `--protocol list` prints: each name, and two lines on it."""
    return "\n".join(f"{name}\n  {text.replace(chr(10), chr(10) + '  ')}" for name, text in about.items())


@dataclass(frozen=True)
class BenchmarkRun:
    """The shared arguments, checked: what is judged, how images are read, and where results go."""

    backbone: Backbone
    reader: Reader
    output_dir: Path
    cache_dir: Path
    crop_px: int
    resize_px: int
    seed: int
    standard: tuple[int, int] = (CROP_PX, RESIZE_PX)

    def transform(self, fit: str) -> Transform:
        """The protocol's transform at this job's image size."""
        return Transform(fit, self.crop_px, self.resize_px)

    def protocol(self, name: str) -> str:
        """The protocol's name, with the image size when it is not the protocol's own: `pcl@128px-resize160`."""
        if (self.crop_px, self.resize_px) == self.standard:
            return name
        odd_resize = "" if self.resize_px == usual_resize(self.crop_px, self.standard) else f"-resize{self.resize_px}"
        return f"{name}@{self.crop_px}px{odd_resize}"

    def extract(self, images: ImageList, features: Sequence[Feature]) -> Extraction:
        """`features.extract`, and a line of what was done. Creates the output folder first: no work for nothing."""
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
        scores: dict[str, Score],
        data: dict,
        settings: dict,
        duration_seconds: float,
        keep: Callable[[Path], Predictions] | None = None,
    ) -> Path:
        """Write one record, `a/b` as `a-b.json`, and return its path. keep: writes the predictions beside it (npz)."""
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
            shared | settings,
            round(duration_seconds, 3),
            predictions=keep(path.with_suffix(".npz")) if keep else None,
        )
        record.write(path)
        print(f"wrote {path}")
        return path


def add_training(parser: argparse.ArgumentParser) -> None:
    """The arguments of protocols that train; what differs from the protocol's own goes into its name."""
    parser.add_argument("--epochs", type=_at_least(1), help="train shorter or longer, the schedule in proportion")
    parser.add_argument("--train-batch", type=_at_least(2), help="images a step over all ranks, rates in proportion")
    parser.add_argument("--evaluations", type=_at_least(1), default=10, help="looks at val during training (10)")
    parser.add_argument("--bf16", action="store_true", help="run the backbone under bfloat16 autocast")


def make_plan(args: argparse.Namespace, job: BenchmarkRun, device: torch.device, name: str) -> TrainingSetup:
    """Where and how a training protocol runs: its state lies in OUTPUT_DIR/NAME, and is gone on with when found."""
    folder = output_folder(job.output_dir / name.replace("/", "-"))
    return TrainingSetup(
        device, job.reader.workers, job.crop_px, job.resize_px, folder, job.seed, args.evaluations,
        args.bf16, job.reader.max_bad_share,
    )  # fmt: skip


def require_paths(args: argparse.Namespace) -> None:
    """Raise UserError for the first of --checkpoint, --data and --output-dir that is not given."""
    for name in ("checkpoint", "data", "output_dir"):
        if getattr(args, name) is None:
            raise UserError(f"--{name.replace('_', '-')} is required; see --help")


def only_listed(args: argparse.Namespace, about: Mapping[str, str]) -> bool:
    """Answer `--protocol list` (True) for a tool that needs no choice. Raises UserError for an unknown protocol."""
    if "list" in (args.protocol or ()):
        print(explain(about))
        return True
    if strange := [name for name in args.protocol or () if name not in about]:
        raise UserError(f"--protocol {strange[0]}: not known; choose {', '.join(about)}, or list to read of it")
    return False


def make_job(args: argparse.Namespace) -> BenchmarkRun:
    """Check the shared arguments and read the checkpoint. Writes nothing. Raises UserError."""
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
    """The resize that keeps a protocol's proportion, for most that of 256 to 224."""
    return round(crop_px * standard[1] / standard[0])


def skipped(done: Extraction) -> dict[str, object]:
    """What a record says of unreadable images."""
    return {"count": len(done.unreadable), "files": dict(sorted(done.unreadable.items())[:20])}


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _at_least(low: int):
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
