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
    """train (N, D), labels (N,), val (M, D) -> (M, classes) cosines to the means of unit features."""
    means = one_hot(labels, classes).to(train).T @ normalize(train, dim=1)  # sums: cosines do not see the length
    return normalize(val, dim=1) @ normalize(means, dim=1).T


@command
def main(argv=None):
    args = make_parser(__doc__, "a folder with train/CLASS/IMAGE and val/CLASS/IMAGE").parse_args(argv)
    job, folders = make_job(args), read_folders(args.data)
    found = labelled_features(job, args.data, folders, Feature(job.transform("center"), "gap"))
    train, val = (torch.from_numpy(split.features) for split in (found.train, found.val))
    cosines = votes(train, torch.from_numpy(found.train.labels), val, len(found.classes))
    hits = top_k_hits(cosines.numpy(), found.val.labels, 1)
    score = hits_score(hits, job.seed)
    print(f"{job.protocol('nearest-mean/cosine')}: top1 {in_percent(score)}")
    job.write_record("nearest-mean/cosine", {"top1": score}, found.data, {"feature": "gap"}, found.seconds)


if __name__ == "__main__":
    sys.exit(main())
