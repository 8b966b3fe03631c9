"""Weighted kNN accuracy of frozen features on an image folder with train/ and val/ (average pool, unit length, cosine).

python transfer/knn.py --checkpoint CHECKPOINT --data IMAGENET --k 20 --k 200 --output-dir results
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # run from a checkout, without installation

from functools import partial

import torch
from torch.nn.functional import normalize

from adco.evaluation.bootstrap import REPLICATES, hits_score, in_percent, top_k_hits
from adco.evaluation.knn import MIN_TEMPERATURE, knn_predict
from adco.evaluation.predictions import write_hits
from adco.utils.errors import UserError, command
from transfer.cli import add_protocols, make_job, make_parser, select_protocols
from transfer.features.extract import Feature
from transfer.features.image_folder import labelled_features, read_folders

ABOUT = {
    "knn": "Weighted kNN (Wu et al., 2018) on average-pooled, L2-normalised features of one centre crop: each of the\n"
    "k nearest training images by cosine votes with exp(cosine / temperature)."
}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate every k on the features of one pass, and write a record for each."""
    parser = make_parser(__doc__, "a folder with train/CLASS/IMAGE and val/CLASS/IMAGE")
    add_protocols(parser, "knn")
    parser.add_argument("--k", action="append", type=int, help="neighbours, may be repeated (20 and 200)")
    parser.add_argument(
        "--temperature", type=float, default=0.07, help="a vote weighs exp(cosine / temperature) (0.07)"
    )
    args = parser.parse_args(argv)
    if not select_protocols(args.protocol, "knn", ABOUT):
        return 0
    neighbours = list(dict.fromkeys(args.k or [20, 200]))
    run, folders = make_job(args), read_folders(args.data)
    check(neighbours, args.temperature, len(folders[0]))
    splits = labelled_features(run, args.data, folders, Feature(run.transform("center")))

    device = run.reader.device
    train, val = (normalize(torch.from_numpy(split.features).to(device)) for split in (splits.train, splits.val))
    labels = torch.from_numpy(splits.train.labels)
    for k in neighbours:
        start = time.perf_counter()
        votes = knn_predict(train, labels, val, k, args.temperature, len(splits.classes)).numpy()
        hits = {f"top{n}": top_k_hits(votes, splits.val.labels, n) for n in (1, 5) if n < len(splits.classes)}
        scores = {name: hits_score(hit, run.seed) for name, hit in hits.items()}
        protocol = f"knn/k{k}-t{args.temperature:g}"
        for name, score in scores.items():
            print(f"{run.protocol(protocol)}: {name} {in_percent(score)}")
        settings = {"k": k, "temperature": args.temperature, "feature": "gap", "fit": "center"}
        settings |= {"interval_replicates": REPLICATES, "trials": 1}
        settings["pictures_computed"] = splits.computed
        seconds = splits.seconds + time.perf_counter() - start
        write_predictions = partial(write_hits, names=splits.val.names, hits=hits)
        run.write_record(protocol, scores, splits.data, settings, seconds, write_predictions)
    return 0


def check(neighbours: Sequence[int], temperature: float, images: int) -> None:
    """Raise UserError for values that `knn_predict` rejects, before features are extracted."""
    for k in neighbours:
        if not 1 <= k <= images:
            raise UserError(f"--k {k}: expected 1 to the number of training images, {images}")
    if not temperature >= MIN_TEMPERATURE:
        raise UserError(f"--temperature {temperature:g}: expected at least {MIN_TEMPERATURE:.4f}, usual is 0.07")


if __name__ == "__main__":
    sys.exit(main())
