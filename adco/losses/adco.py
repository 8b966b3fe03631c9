"""AdCo's objective (Hu et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adco.losses.bank_softmax import (
    LossOutput,
    PerView,
    SoftmaxStats,
    _ascent,
    _contrast,
    _cross_entropy,
    _precise,
    streamed_softmax,
)
from adco.losses.pairs import Pair
from adco.utils import distributed


def adversarial_contrast(
    queries: PerView,
    keys: PerView,
    pairs: Sequence[Pair],
    bank: Tensor,
    tau: float,
    tau_bank: float | None,
    in_batch_negatives: bool,
    objective: str = "loss",
    sharded: bool = False,
) -> LossOutput:
    """AdCo: eq. (1) at tau for the encoder; for the bank the ascent of eqs. (4)-(6) at tau_bank, or of J (section 4.1).

    queries: (N, D) unit rows a view, with gradient. keys: (N, D) unit rows a view, without. bank: (K, D) raw rows W.
    tau_bank None: no ascent (a queue does not learn). objective: `loss` or `J`.
    """
    rows = _precise(bank, min(tau, tau_bank or tau))
    stats = streamed_softmax(queries, pairs, rows, tau, tau_bank, sharded)
    shares = {view: torch.zeros_like(sums) for view, sums in stats.sums.items()}
    losses, hits = [], []
    for pair in pairs:
        view, q, k = pair.query, queries[pair.query], keys[pair.key].to(rows.dtype)
        own = (q.detach() * k).sum(dim=1)
        others = distributed.all_gather(k) if in_batch_negatives else None
        cosines = own.unsqueeze(1) if others is None else q.detach().to(k.dtype) @ others.T
        e = (cosines / tau).exp()
        pull = e * k if others is None else e @ others
        losses.append(_cross_entropy(q, stats.sums[view] + e.sum(dim=1), stats.weighted_sums[view] + pull, own, k, tau))
        hits.append(own * (1 + 1e-6) >= torch.maximum(stats.nearest[view], cosines.amax(dim=1)))
        if objective == "J":
            shares[view] += pair.weight
        elif tau_bank is not None:
            sums = stats.bank_sums[view] + (cosines / tau_bank).exp().sum(dim=1)
            shares[view] += pair.weight / (tau_bank * distributed.world_size() * len(q) * sums)
    if objective == "J":
        _over_queries(stats, sharded)
    ascent = None if tau_bank is None else _ascent(stats, shares, rows, sharded)
    return _contrast(pairs, losses, hits, ascent)


def _over_queries(stats: SoftmaxStats, sharded: bool) -> None:
    """Turn the blocks into softmaxes over the queries of each view on all ranks, in place (section 4.1)."""
    for block in stats.blocks:
        of_view = block.unflatten(0, (-1, len(stats.sums)))
        sums = of_view.sum(dim=0)
        of_view.div_(sums if sharded else distributed.all_reduce_sum(sums))
