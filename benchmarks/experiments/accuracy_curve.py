"""kNN and linear top-1 of a pretraining run at several epochs: the curves of figure 1.

    python benchmarks/experiments/accuracy_curve.py --run FOLDER --data IMAGENETTE --image-px 64 \
        --epochs 1 2 5 10 20 --output-dir OUT

The hits of each epoch, image by image, are kept in OUT/epoch_N.npz: two methods are compared on the same images
(lead.py), and a second call computes only what is missing. OUT/knn.json and OUT/linear.json are records.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np
import torch
from torch.nn.functional import normalize

from adco.evaluation.bootstrap import hits_interval, top_k_hits
from adco.evaluation.knn import knn_predict
from adco.evaluation.records import Record, Score, load_record
from adco.utils.errors import UserError, command
from adco.utils.files import atomic_write
from transfer.cli import BenchmarkRun, make_job, make_parser
from transfer.features.extract import Feature
from transfer.features.image_folder import Labelled, labelled_features, read_folders
from transfer.linear import choose, standardiser, sweep

K, TEMPERATURE = 20, 0.07


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate the epochs that have no hits yet, and write the records."""
    parser = make_parser(__doc__.split("\n\n")[0], "a folder with train/CLASS/IMAGE and val/CLASS/IMAGE")
    parser.add_argument("--run", type=Path, required=True, metavar="FOLDER", help="of tools/train_adco.py, ended")
    parser.add_argument("--epochs", type=int, nargs="+", required=True, help="kNN at these")
    parser.add_argument("--linear-epochs", type=int, nargs="*", default=[], help="a linear probe too at these")
    parser.add_argument("--prune", action="store_true", help="then remove the run's checkpoints of other epochs")
    args = parser.parse_args(argv)
    run = load_record(args.run / "record.json")
    for epoch in args.epochs:
        path = args.output_dir / f"epoch_{epoch}.npz"
        if not path.is_file():
            _evaluate(args, checkpoint_at(args.run, run, epoch), epoch in args.linear_epochs, path)
    for kind, epochs in (("knn", args.epochs), ("linear", [e for e in args.epochs if e in args.linear_epochs])):
        if epochs:
            path = write_curve(args, run, kind, epochs)
            print(f"wrote {path}")
    if args.prune:
        prune(args.run, [checkpoint_at(args.run, run, epoch) for epoch in args.epochs])
    return 0


def prune(folder: Path, needed: Sequence[Path]) -> None:
    """Remove the checkpoints of a run that has ended, except the needed ones and the last."""
    for path in sorted(folder.glob("checkpoint_*.pth"))[:-1]:
        if path not in needed:
            path.unlink()
            path.with_name(path.name + ".sha256").unlink(missing_ok=True)


def checkpoint_at(folder: Path, run: Record, epoch: int) -> Path:
    """The run's checkpoint after `epoch` epochs. Raises UserError when it was not kept."""
    path = folder / f"checkpoint_{epoch * (run.data.counts['images'] // run.settings['batch']):08d}.pth"
    if not path.is_file():
        raise UserError(f"{path}: epoch {epoch} was not kept; pretrain with checkpoint.keep at least the epochs")
    return path


def _evaluate(args: argparse.Namespace, checkpoint: Path, linear: bool, path: Path) -> None:
    start, args.checkpoint = time.perf_counter(), str(checkpoint)
    job = make_job(args)
    cache = job.cache_dir / path.stem
    job, folders = replace(job, cache_dir=cache), read_folders(args.data)
    features = labelled_features(job, args.data, folders, Feature(job.transform("center")))
    hits = {"knn": knn_hits(features, job.reader.device)}
    if linear:
        hits["linear"] = linear_hits(features, job)
    with atomic_write(path) as file:
        np.savez(file, seconds=time.perf_counter() - start, fingerprint=features.data["fingerprint"], **hits)
    shutil.rmtree(cache)
    print(f"{checkpoint.name}: " + ", ".join(f"{kind} {100 * hit.mean():.2f} %" for kind, hit in hits.items()))


def knn_hits(features: Labelled, device: torch.device) -> np.ndarray:
    """(N,) bool: whether kNN with 20 neighbours predicts the class of each val image."""
    train, val = (normalize(torch.from_numpy(split.features).to(device)) for split in (features.train, features.val))
    labels, k = torch.from_numpy(features.train.labels), min(K, len(train))
    votes = knn_predict(train, labels, val, k, TEMPERATURE, len(features.classes)).numpy()
    return top_k_hits(votes, features.val.labels)


def linear_hits(features: Labelled, job: BenchmarkRun) -> np.ndarray:
    """(N,) bool: the same of transfer/linear.py's probe; rate and decay are chosen on training images."""
    standardise, classes = standardiser(features.train.features, job.reader.device), len(features.classes)
    x, y = standardise(features.train.features), torch.from_numpy(features.train.labels).to(job.reader.device)
    rate, decay, _ = choose(x, features.train.labels, classes, job.seed)
    made = sweep(x, y, classes, (rate,), (decay,), job.seed)
    return top_k_hits(made.logits(standardise(features.val.features), 0), features.val.labels)


def write_curve(args: argparse.Namespace, run: Record, kind: str, epochs: Sequence[int]) -> Path:
    """Write the record of one probe over the epochs, each value with its 95% interval over the val images.

    Args:
        args: The command line.
        run: The record of the pretraining.
        kind: `knn` or `linear`.
        epochs: The epochs of the curve.

    Returns:
        The record's file.
    """
    parts = {epoch: np.load(args.output_dir / f"epoch_{epoch}.npz") for epoch in epochs}
    rows = [{"epoch": e, "top1": 100 * float(p[kind].mean()), "interval95": hits_interval(p[kind])}
            for e, p in parts.items()]  # fmt: skip
    scores = [Score.over_images(row["top1"], row["interval95"]) for row in rows]
    probe = {"knn": f"knn-k{K}", "linear": "linear-cached-features"}[kind]
    record = Record(
        protocol=f"pretraining/curve-{probe}@{args.image_px or 224}px",
        scores={"top1": scores[-1]} | {f"top1@{e}ep": score for e, score in zip(parts, scores, strict=True)},
        checkpoint=run.checkpoint,
        data={"name": Path(args.data).resolve().name, "fingerprint": str(parts[epochs[-1]]["fingerprint"]),
              "train_images": run.data.counts["images"], "val_images": len(parts[epochs[-1]][kind])},
        settings={"curve": rows, "interval": "95%, bootstrap over the val images", "image_px": args.image_px or 224,
                  **what_ran(run)},
        duration_seconds=round(sum(float(part["seconds"]) for part in parts.values()), 1),
    )  # fmt: skip
    return record.write(args.output_dir / f"{kind}.json")


def what_ran(run: Record) -> Mapping[str, object]:
    """The settings that describe the pretraining run: recipe, seed, duration and commit."""
    recipe = run.settings
    return {"method": recipe["method"], "seed": recipe["seed"], "epochs": recipe["epochs"], "pretraining": recipe,
            "pretraining_seconds": run.duration_seconds, "pretraining_commit": run.commit}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
