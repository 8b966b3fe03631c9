"""Sinkhorn-Knopp, which makes SwAV's assignments (Caron et al., NeurIPS 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from adco.utils import distributed


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Eq. (3): scale exp(scores / epsilon) until the prototypes share the samples of all ranks evenly.

    Args:
        scores: (M, prototypes) cosines of this rank's samples with the prototypes, in [-1, 1].
        epsilon: Weight of the entropy, from 0.002; a small one makes sharp assignments.
        rounds: How often columns and rows are scaled in turn.

    Returns:
        (M, prototypes) assignments without gradient. Rows sum to 1. Columns sum, over all ranks, nearly to
        samples / prototypes.
    """
    q = (scores.double() / epsilon).exp()  # float64, in which a cosine's exponential fits down to epsilon = 0.002
    for _ in range(rounds):
        q /= distributed.all_reduce_sum(q.sum(dim=0))  # each prototype gets the same mass
        q /= q.sum(dim=1, keepdim=True)  # each sample gives the mass 1
    return q.to(scores.dtype)
