"""kNN and linear top-1 of a pretraining run at several of its epochs: the curves of figure 1.

    python benchmarks/experiments/accuracy_curve.py --run FOLDER --data IMAGENETTE --image-px 64 \
        --epochs 1 2 5 10 20 --output-dir OUT

Each epoch's hits, image by image, are kept in OUT/epoch_N.npz, so that two methods are compared on the same
images (lead.py) and a second call does only what is missing. OUT/knn.json and OUT/linear.json are records.
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
            _judge(args, checkpoint_at(args.run, run, epoch), epoch in args.linear_epochs, path)
    for kind, epochs in (("knn", args.epochs), ("linear", [e for e in args.epochs if e in args.linear_epochs])):
        if epochs:
            path = write_curve(args, run, kind, epochs)
            print(f"wrote {path}")
    if args.prune:
        prune(args.run, [checkpoint_at(args.run, run, epoch) for epoch in args.epochs])
    return 0


def prune(folder: Path, needed: Sequence[Path]) -> None:
    """Remove the checkpoints of a run that has ended, but for the needed ones and the last."""
    found = sorted(folder.glob("checkpoint_*.pth"))
    for path in found[:-1]:
        if path not in needed:
            path.unlink()
            path.with_name(path.name + ".sha256").unlink(missing_ok=True)


def checkpoint_at(folder: Path, run: Record, epoch: int) -> Path:
    """The checkpoint after so many epochs. Raises UserError when it was not kept."""
    path = folder / f"checkpoint_{epoch * (run.data.counts['images'] // run.settings['batch']):08d}.pth"
    if not path.is_file():
        raise UserError(f"{path}: epoch {epoch} was not kept; pretrain with checkpoint.keep at least the epochs")
    return path


def _judge(args: argparse.Namespace, checkpoint: Path, linear: bool, path: Path) -> None:
    start, args.checkpoint = time.perf_counter(), str(checkpoint)
    job = make_job(args)
    cache = job.cache_dir / path.stem
    job, folders = replace(job, cache_dir=cache), read_folders(args.data)
    found = labelled_features(job, args.data, folders, Feature(job.transform("center")))
    hits = {"knn": knn_hits(found, job.reader.device)}
    if linear:
        hits["linear"] = linear_hits(found, job)
    with atomic_write(path) as file:
        np.savez(file, seconds=time.perf_counter() - start, fingerprint=found.data["fingerprint"], **hits)
    shutil.rmtree(cache)
    print(f"{checkpoint.name}: " + ", ".join(f"{kind} {100 * hit.mean():.2f} %" for kind, hit in hits.items()))


def knn_hits(found: Labelled, device: torch.device) -> np.ndarray:
    """(N,) bool: which val images the 20 nearest training images put in the right class."""
    train, val = (normalize(torch.from_numpy(split.features).to(device)) for split in (found.train, found.val))
    labels, k = torch.from_numpy(found.train.labels), min(K, len(train))
    votes = knn_predict(train, labels, val, k, TEMPERATURE, len(found.classes)).numpy()
    return top_k_hits(votes, found.val.labels)


def linear_hits(found: Labelled, job: BenchmarkRun) -> np.ndarray:
    """(N,) bool: the same of transfer/linear.py's probe, its rate and decay chosen on training images."""
    rows, classes = standardiser(found.train.features, job.reader.device), len(found.classes)
    x, y = rows(found.train.features), torch.from_numpy(found.train.labels).to(job.reader.device)
    rate, decay, _ = choose(x, found.train.labels, classes, job.seed)
    made = sweep(x, y, classes, (rate,), (decay,), job.seed)
    return top_k_hits(made.logits(rows(found.val.features), 0), found.val.labels)


def write_curve(args: argparse.Namespace, run: Record, kind: str, epochs: Sequence[int]) -> Path:
    """A record of one probe over the epochs, each value with its 95% interval over the val images."""
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
    """Of the pretraining run: the recipe, its seed, when and at what cost."""
    recipe = run.settings
    return {"method": recipe["method"], "seed": recipe["seed"], "epochs": recipe["epochs"], "pretraining": recipe,
            "pretraining_seconds": run.duration_seconds, "pretraining_commit": run.commit}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
