"""Draw figure 2 of the AdCo paper: the bank's rows among queries of training images, for one or more checkpoints.

The share of outlier negatives is reported, too: a row is an outlier if its largest cosine to any query is below the 5th
percentile of the cosines between queries and their nearest other query. A bank that is distributed like the queries has
about 5% of them. The share is of the whole bank; the image shows --rows of it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from adco.data.sources import open_images
from adco.report import bank_tsne
from adco.utils.device import parse_workers, resolve_device, resolve_workers, set_arithmetic
from adco.utils.errors import UserError, command
from adco.utils.files import atomic_write, output_folder, sha256_of, write_text
from adco.utils.progress import progress
from adco.weights.zoo import is_zoo, resolve

EXAMPLES = """\
examples:
  # AdCo beside MoCo, as in the paper
  python tools/draw_bank.py output/adco/checkpoint_00100000.pth output/moco/checkpoint_00100000.pth \\
      --data IMAGENET --output figure2.png
Writes figure2.png and figure2.json with the numbers.
"""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Draw the image, write the numbers and print the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checkpoints", nargs="+", metavar="CHECKPOINT", help="of tools/train_adco.py, or zoo://NAME of one"
    )
    parser.add_argument("--data", required=True, metavar="FOLDER", help="training images, as data.root names them")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.png", help="the image; numbers: FILE.json")
    parser.add_argument("--rows", type=int, default=2000, help="bank rows in the image (default: %(default)s)")
    parser.add_argument("--images", type=int, default=2000, help="training images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of views, rows and t-SNE (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:INDEX (default: %(default)s)")
    parser.add_argument("--workers", type=parse_workers, default="auto", help="reading threads (default: %(default)s)")
    args = parser.parse_args(argv)
    _check(args)
    device, index = resolve_device(args.device), open_images(args.data)
    set_arithmetic(device)
    paths = [resolve(name) for name in args.checkpoints]
    runs = [bank_tsne.load_run(path) for path in paths]
    runs = [replace(run, name=str(n)) if is_zoo(n) else run for n, run in zip(args.checkpoints, runs, strict=True)]
    panels, reported = [], []
    with progress(len(runs), "drawing", "checkpoints") as bar:
        for path, run in zip(paths, runs, strict=True):
            panels.append(_panel(run, index, args, device))
            reported.append({"checkpoint": path.name, "sha256": sha256_of(path), "name": run.name, **panels[-1].about})
            bar.update()
    with atomic_write(args.output) as file:
        file.write(bank_tsne.draw(panels))
    settings = {key: getattr(args, key) for key in ("rows", "images", "seed")}
    settings |= {"outlier_percentile": bank_tsne.PERCENTILE, "precision": "float32"}
    write_text(args.output.with_suffix(".json"), json.dumps({"runs": reported, "settings": settings}, indent=2) + "\n")
    for row in reported:
        print(f"{row['name']}/{row['checkpoint']}: {row['outlier_share']:.1%} of {row['bank_rows']} rows are outliers")
    print(args.output)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.output.suffix != ".png":
        raise UserError(f"--output {args.output}: expected a name that ends in .png")
    for name, low in (("rows", 10), ("images", 10), ("seed", 0)):
        if getattr(args, name) < low:
            raise UserError(f"--{name} {getattr(args, name)}: expected at least {low}")
    output_folder(args.output.parent)


def _panel(run: bank_tsne.Run, index, args: argparse.Namespace, device: torch.device) -> bank_tsne.Panel:
    workers = resolve_workers(args.workers, device)
    queries = bank_tsne.queries_of(run, index, args.images, args.seed, device, workers)
    outliers = bank_tsne.outliers(queries, run.rows)
    order = np.random.default_rng(args.seed).permutation(len(run.rows))
    shown = torch.from_numpy(np.sort(order[: args.rows]))
    plane = bank_tsne.lay_out(queries, run.rows[shown], args.seed)
    about = {"method": run.recipe.method, "step": run.step} | bank_tsne.numbers(queries, run.rows, outliers)
    return bank_tsne.Panel(run.title, *plane, outliers.mask[shown].numpy(), about)


if __name__ == "__main__":
    sys.exit(main())
