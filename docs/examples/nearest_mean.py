"""A new frozen-feature protocol: each image gets the class whose mean feature is nearest by cosine.

python docs/examples/nearest_mean.py --checkpoint CHECKPOINT --data IMAGENET --output-dir output/nearest-mean
"""

import sys

import torch
from torch.nn.functional import normalize, one_hot

from adco.evaluation.bootstrap import hits_score, in_percent, top_k_hits
from adco.utils.errors import command
from transfer.cli import make_job, make_parser
from transfer.features.extract import Feature
from transfer.features.image_folder import labelled_features, read_folders


def votes(train, labels, val, classes):
    """Features (N, D), (M, D), class numbers (N,) -> (M, classes) cosines to the mean of each class's unit features."""
    # sums instead of means, because a cosine does not depend on the length: (classes, D)
    means = one_hot(labels, classes).to(train).T @ normalize(train, dim=1)
    return normalize(val, dim=1) @ normalize(means, dim=1).T


@command
def main(argv=None):
    args = make_parser(__doc__, "a folder with train/CLASS/IMAGE and val/CLASS/IMAGE").parse_args(argv)
    run, folders = make_job(args), read_folders(args.data)
    splits = labelled_features(run, args.data, folders, Feature(run.transform("center"), "gap"))
    train, val = (torch.from_numpy(split.features) for split in (splits.train, splits.val))
    cosines = votes(train, torch.from_numpy(splits.train.labels), val, len(splits.classes))
    hits = top_k_hits(cosines.numpy(), splits.val.labels, 1)
    score = hits_score(hits, run.seed)
    print(f"{run.protocol('nearest-mean/cosine')}: top1 {in_percent(score)}")
    run.write_record("nearest-mean/cosine", {"top1": score}, splits.data, {"feature": "gap"}, splits.seconds)


if __name__ == "__main__":
    sys.exit(main())
