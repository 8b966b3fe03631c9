"""Pure functions of the contrastive game: which query meets which key, the encoder's loss, the bank's ascent direction.

Notation (AdCo paper, section 3): q (N, D) unit queries, k (N, D) unit keys, n = W / |W| (K, D) unit adversaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adco import distributed


@dataclass(frozen=True)
class Pair:
    """The query of view `query` is to find the key of view `key`; `weight` scales its loss and its bank gradient."""

    query: int
    key: int
    weight: float


@dataclass(frozen=True)
class Contrast:
    """What one evaluation gives.

    loss: scalar, sum over pairs of weight * cross-entropy, with gradient to the queries
    direction: (K, D) ascent direction on the raw bank rows, mean over ranks, without gradient
    cross_entropies: one scalar a pair; accuracy: share of queries whose positive has the largest logit, mean over pairs
    """

    loss: Tensor
    direction: Tensor
    cross_entropies: Tensor
    accuracy: Tensor


def make_pairs(views: int, symmetric: bool) -> tuple[Pair, ...]:
    """The weighted query-key pairs of single crop, symmetric and multi-crop AdCo.

    Not symmetric: the last view is the key of all others and the losses are summed (one query view: single crop).
    Symmetric: two views are each other's keys, mean of both directions.
    """
    if symmetric:
        if views != 2:
            raise ValueError(f"the symmetric loss takes 2 views, not {views}")
        return Pair(0, 1, 0.5), Pair(1, 0, 0.5)
    return tuple(Pair(query, views - 1, 1.0) for query in range(views - 1))


def adversarial_contrast(
    queries: dict[int, Tensor],
    keys: dict[int, Tensor],
    pairs: Sequence[Pair],
    bank: Tensor,
    tau: float,
    tau_bank: float,
    in_batch_negatives: bool,
) -> Contrast:
    """Evaluate eq. (1) for the encoder at tau and eqs. (4)-(6) for the bank at tau_bank on the same logits.

    queries: view -> (N, D) unit rows with gradient. keys: view -> (N, D) unit rows without. bank: (K, D) raw rows W.
    """
    norms = bank.norm(dim=1, keepdim=True)
    n = bank / norms
    losses, hits, direction = [], [], torch.zeros_like(bank)
    for pair in pairs:
        q = queries[pair.query]
        positives, label = _positives(q, keys[pair.key], in_batch_negatives)
        cosines = torch.cat([positives, q @ n.T], dim=1)
        losses.append(F.cross_entropy(cosines / tau, label))
        with torch.no_grad():
            hits.append((cosines.argmax(dim=1) == label).float().mean())
            p = torch.softmax(cosines / tau_bank, dim=1)[:, positives.shape[1] :]
            direction += pair.weight * ascent_direction(q, n, p, norms, tau_bank)
    cross_entropies = torch.stack(losses)
    weights = cross_entropies.new_tensor([pair.weight for pair in pairs])
    return Contrast(
        loss=(weights * cross_entropies).sum(),
        direction=distributed.mean(direction),
        cross_entropies=cross_entropies.detach(),
        accuracy=torch.stack(hits).mean(),
    )


def ascent_direction(q: Tensor, n: Tensor, p: Tensor, norms: Tensor, tau_bank: float) -> Tensor:
    """Gradient of the mean cross-entropy at tau_bank with respect to the raw rows W, closed form.

    q: (N, D), n: (K, D) = W / |W|, p: (N, K) the bank's columns of the softmax, norms: (K, 1) = |W|. Returns (K, D):
    ( mean_i p_ik q_i - mean_i(p_ik q_i.n_k) n_k ) / (tau_bank |W_k|), eq. (6) through the normalisation of footnote 1.
    """
    pull = p.T @ q / q.shape[0]
    tangent = pull - (pull * n).sum(dim=1, keepdim=True) * n
    return tangent / (tau_bank * norms)


def _positives(q: Tensor, k: Tensor, in_batch_negatives: bool) -> tuple[Tensor, Tensor]:
    """Cosines with the keys, (N, M), and the column of each row's positive: M = all ranks' keys, or 1."""
    rows = q.shape[0]
    if in_batch_negatives:
        label = distributed.rank() * rows + torch.arange(rows, device=q.device)
        return q @ distributed.gather(k).T, label
    return (q * k).sum(dim=1, keepdim=True), torch.zeros(rows, dtype=torch.long, device=q.device)
