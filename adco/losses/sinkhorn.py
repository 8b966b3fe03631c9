"""SwAV's assignments (Caron et al., NeurIPS 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from adco.utils import distributed


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Sinkhorn-Knopp: exp(scores / epsilon), scaled until prototypes share the samples of all ranks evenly (eq. 3).

    scores: (M, prototypes) cosines of this rank's samples; epsilon: small is sharp. Returns (M, prototypes)
    assignments: rows sum to 1, and columns, over all ranks, nearly to samples / prototypes.
    """
    q = (scores.double() / epsilon).exp()  # a cosine's exponential fits float64 down to epsilon = 0.002
    for _ in range(rounds):
        q /= distributed.all_reduce_sum(q.sum(dim=0))
        q /= q.sum(dim=1, keepdim=True)
    return q.to(scores.dtype)
