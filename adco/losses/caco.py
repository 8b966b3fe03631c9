"""CaCo's objective (Wang et al., TPAMI 2023): positives are learned too, in the bank that the negatives come from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from adco.losses.bank_gradient import Workspace
from adco.losses.bank_softmax import (
    LossOutput,
    PerView,
    computable,
    cross_entropy,
    loss_output,
    row_chunks,
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
    workspace: Workspace | None = None,
) -> LossOutput:
    """The encoder's loss at `tau` and the bank's gradient at `tau_bank`.

    The positive of a query is the bank row that is nearest to its key, y = argmax_k k.n_k; all other rows are
    negatives. The gradient pulls a row towards a query with weight p as a negative and 1 - p as the positive: a step
    along it lowers the loss through the positives and raises it through the negatives.

    Args:
        queries: (N, D) unit queries of each view; the loss's gradient reaches them.
        keys: (N, D) unit keys of each view, without gradient; they choose the positives.
        pairs: Which query view is compared with which key view.
        bank: (K, D) raw rows W.
        tau: Temperature of the encoder's loss, above 0.
        tau_bank: Temperature of the bank's gradient, above 0.
        sharded: Whether `bank` is this rank's part of a bank that is split over the ranks.
        workspace: Memory that the next evaluation uses again; None: memory of its own.

    Returns:
        Loss, gradient on W, cross-entropy of each pair, and accuracy.
    """
    rows = computable(bank, min(tau, tau_bank))
    stats = streamed_softmax(queries, pairs, rows, tau, tau_bank, sharded, workspace)
    weights = {view: torch.zeros_like(sums) for view, sums in stats.sums.items()}  # in the bank's gradient
    labels = {view: nearest_row(keys[view], rows, sharded) for view in {pair.key for pair in pairs}}
    losses, hits, extra = [], [], []
    for pair in pairs:
        view, q = pair.query, queries[pair.query]
        # positives: (N, D); of a sharded bank each rank has some of them, for the queries of all ranks
        label = labels[pair.key] - (distributed.rank() * len(rows) if sharded else 0)
        here = ((label >= 0) & (label < len(rows))).unsqueeze(1)
        label = label.clamp(0, len(rows) - 1)
        positive = rows[label] / rows[label].norm(dim=1, keepdim=True) * here
        positive = distributed.reduce_scatter_sum(positive) if sharded else positive
        cosine = (q.detach() * positive).sum(dim=1)
        losses.append(cross_entropy(q, stats.sums[view], stats.weighted_sums[view], cosine, positive, tau))
        hits.append(cosine * (1 + 1e-6) >= stats.nearest[view])
        # all rows are pulled with probability p ...
        weight = pair.weight / (tau_bank * distributed.world_size() * len(q))
        weights[view] += weight / stats.bank_sums[view]
        # ... and the positive with 1 - p, so that 1 - 2p is missing
        p = (cosine / tau_bank).exp() / stats.bank_sums[view]
        missing = (weight * (1 - 2 * p)).unsqueeze(1) * q.detach()
        extra.append((label, (distributed.all_gather(missing) if sharded else missing) * here))
    return loss_output(pairs, losses, hits, stats.bank_gradient(weights, rows, sharded, extra))


def nearest_row(k: Tensor, bank: Tensor, sharded: bool) -> Tensor:
    """The bank row with the largest cosine to each key; among equals the first.

    Args:
        k: (N, D) unit keys.
        bank: (K, D) raw rows.
        sharded: Whether `bank` is this rank's part of a bank that is split over the ranks.

    Returns:
        (M,) int64 numbers in the whole bank. M is N, or if sharded the keys of all ranks.
    """
    keys, start = (distributed.all_gather(k) if sharded else k).to(bank.dtype), 0
    best, label = keys.new_full((len(keys),), -math.inf), torch.zeros(len(keys), dtype=torch.long, device=k.device)
    for rows in row_chunks(bank, len(keys)):
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
