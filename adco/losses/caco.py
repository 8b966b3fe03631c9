"""CaCo's objective (Wang et al., TPAMI 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adco.losses.bank_softmax import (
    LossOutput,
    PerView,
    _ascent,
    _chunks,
    _contrast,
    _cross_entropy,
    _precise,
    streamed_softmax,
)
from adco.losses.pairs import Pair
from adco.utils import distributed


def cooperative_contrast(
    queries: PerView,
    keys: PerView,
    pairs: Sequence[Pair],
    bank: Tensor,
    tau: float,
    tau_bank: float,
    sharded: bool = False,
) -> LossOutput:
    """CaCo: the positive of a query is the bank row nearest to its key, y = argmax_k k.n_k, all other rows negatives.

    The bank's direction pulls a row towards the query with weight p as a negative and 1 - p as the positive: it lowers
    the loss through the positives and raises it through the negatives. Arguments as in `adversarial_contrast`.
    """
    rows = _precise(bank, min(tau, tau_bank))
    stats = streamed_softmax(queries, pairs, rows, tau, tau_bank, sharded)
    shares = {view: torch.zeros_like(sums) for view, sums in stats.sums.items()}
    labels = {view: nearest_row(keys[view], rows, sharded) for view in {pair.key for pair in pairs}}
    losses, hits, pulled = [], [], []
    for pair in pairs:
        view, q = pair.query, queries[pair.query]
        label = labels[pair.key] - (distributed.rank() * len(rows) if sharded else 0)
        mine = ((label >= 0) & (label < len(rows))).unsqueeze(1)  # with sharding, of all ranks' queries
        label = label.clamp(0, len(rows) - 1)
        positive = rows[label] / rows[label].norm(dim=1, keepdim=True) * mine
        positive = distributed.reduce_scatter_sum(positive) if sharded else positive
        cosine = (q.detach() * positive).sum(dim=1)
        losses.append(_cross_entropy(q, stats.sums[view], stats.weighted_sums[view], cosine, positive, tau))
        hits.append(cosine * (1 + 1e-6) >= stats.nearest[view])
        share = pair.weight / (tau_bank * distributed.world_size() * len(q))
        shares[view] += share / stats.bank_sums[view]
        p = (cosine / tau_bank).exp() / stats.bank_sums[view]
        more = (share * (1 - 2 * p)).unsqueeze(1) * q.detach()  # the positive's weight is 1 - p, and it has p already
        pulled.append((label, (distributed.all_gather(more) if sharded else more) * mine))
    ascent = _ascent(stats, shares, rows, sharded, pulled)
    return _contrast(pairs, losses, hits, ascent)


def nearest_row(k: Tensor, bank: Tensor, sharded: bool) -> Tensor:
    """The number, in the whole bank, of the row with the largest cosine to each key: (N, D), (K, D) -> (M,) int64.

    Among equals the first row wins. M: the keys of all ranks, if sharded.
    """
    keys, start = (distributed.all_gather(k) if sharded else k).to(bank.dtype), 0
    best, label = keys.new_full((len(keys),), -math.inf), torch.zeros(len(keys), dtype=torch.long, device=k.device)
    for rows in _chunks(bank, len(keys)):
        cosines = keys @ (rows / rows.norm(dim=1, keepdim=True)).T
        value, column = cosines.max(dim=1)
        better = value > best
        best, label = torch.where(better, value, best), torch.where(better, column + start, label)
        start += len(rows)
    if not sharded:
        return label
    bests = distributed.all_gather(best.unsqueeze(0))  # (ranks, M)
    labels = distributed.all_gather(label.unsqueeze(0) + distributed.rank() * len(bank))
    return labels.gather(0, bests.argmax(dim=0, keepdim=True)).squeeze(0)
