"""The difference in accuracy between two methods at some epochs, on the same images, with 95% intervals.

    python benchmarks/experiments/lead.py --first CURVE ... --second CURVE ... --epochs 5 10 20 --output lead.json

A CURVE is an output folder of accuracy_curve.py, one for each seed. The difference is that of the means over seeds. Its
interval resamples the test images, the same for both methods; with several seeds Student's interval over the seeds is
recorded, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np

from adco.evaluation.average_precision import weighted_mean
from adco.evaluation.bootstrap import interval
from adco.evaluation.records import Record, Score, load_record
from adco.utils.errors import UserError, command


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Compare the curves at each epoch, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    for side in ("first", "second"):
        parser.add_argument(f"--{side}", type=Path, nargs="+", required=True, metavar="CURVE", help="one for each seed")
    parser.add_argument("--epochs", type=int, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args(argv)
    if len(args.first) != len(args.second):
        raise UserError(f"--first has {len(args.first)} seeds and --second {len(args.second)}; give as many of each")
    rows = [lead(kind, epoch, args.first, args.second) for kind in ("knn", "linear") for epoch in args.epochs]
    for row in rows:
        low, high = row["interval95_images"]
        print(f"{row['probe']}, {row['epoch']} epochs: {row['first']:.2f} - {row['second']:.2f} = {row['lead']:+.2f}, "
              f"95% {low:+.2f} to {high:+.2f}")  # fmt: skip
    print(f"wrote {as_record(rows, args.first, args.second).write(args.output)}")
    return 0


def lead(kind: str, epoch: int, first: Sequence[Path], second: Sequence[Path]) -> dict[str, Any]:
    """The mean top-1 over the seeds of `first` minus that of `second`.

    Args:
        kind: Probe, `knn` or `linear`.
        epoch: Epoch of pretraining.
        first, second: Output folders of accuracy_curve.py, one for each seed, as many of each.

    Returns:
        The row of the record: both accuracies and `lead` in percent with its intervals.

    Raises:
        UserError: A folder has no such epoch, or the numbers of test images differ.
    """
    ours, theirs = (np.stack([hits(folder, epoch, kind) for folder in folders]) for folders in (first, second))
    if ours.shape != theirs.shape:
        raise UserError(f"{first[0]} and {second[0]}: evaluated on {ours.shape[1]} and {theirs.shape[1]} images")
    difference = 100 * (ours.mean(axis=0) - theirs.mean(axis=0))  # of each image: (N,)
    low, high = interval(weighted_mean(difference), len(difference))
    row = {"probe": kind, "epoch": epoch, "first": 100 * float(ours.mean()), "second": 100 * float(theirs.mean()),
           "lead": float(difference.mean()), "interval95_images": (low, high), "seeds": len(first)}  # fmt: skip
    if len(first) > 1:
        over_seeds = Score.over_trials((100 * (ours.mean(axis=1) - theirs.mean(axis=1))).tolist())
        row["interval95_seeds"] = (over_seeds.low, over_seeds.high)
    return row


def hits(folder: Path, epoch: int, kind: str) -> np.ndarray:
    """Which test images were classified correctly.

    Returns:
        (N,) float64, 0 or 1.

    Raises:
        UserError: The folder has no hits of the probe at the epoch.
    """
    path = folder / f"epoch_{epoch}.npz"
    try:
        return np.load(path)[kind].astype(float)
    except (OSError, KeyError):
        raise UserError(f"{path}: no {kind} hits in it; run accuracy_curve.py with epoch {epoch}") from None


def as_record(rows: Sequence[dict[str, Any]], first: Sequence[Path], second: Sequence[Path]) -> Record:
    """The rows of `lead` as one record, with the methods' names and the data from the folders' own records."""
    known = {side: load_record(folders[0] / "knn.json") for side, folders in (("first", first), ("second", second))}
    scores = {f"lead/{row['probe']}@{row['epoch']}ep": Score.over_images(row["lead"], row["interval95_images"])
              for row in rows}  # fmt: skip
    names = {side: record.settings["method"] for side, record in known.items()}
    settings = {"rows": list(rows), **names, "seeds": len(first), "image_px": known["first"].settings["image_px"]}
    px = settings["image_px"]
    return Record(f"pretraining/lead@{px}px", scores, {}, known["first"].data, settings)


if __name__ == "__main__":
    sys.exit(main())
