"""AdCo's objective (Hu et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adco.losses.bank_softmax import Contrast, Sweep, Views, _ascent, _contrast, _cross_entropy, _precise, sweep
from adco.losses.pairs import Pair
from adco.utils import distributed


def adversarial_contrast(
    queries: Views,
    keys: Views,
    pairs: Sequence[Pair],
    bank: Tensor,
    tau: float,
    tau_bank: float | None,
    in_batch_negatives: bool,
    objective: str = "loss",
    sharded: bool = False,
) -> Contrast:
    """AdCo: eq. (1) at tau for the encoder; for the bank the ascent of eqs. (4)-(6) at tau_bank, or of J (section 4.1).

    queries: (N, D) unit rows a view, with gradient. keys: (N, D) unit rows a view, without. bank: (K, D) raw rows W.
    tau_bank None: no ascent (a queue does not learn). objective: `loss` or `J`.
    """
    rows = _precise(bank, min(tau, tau_bank or tau))
    swept = sweep(queries, pairs, rows, tau, tau_bank, sharded)
    shares = {view: torch.zeros_like(sums) for view, sums in swept.sums.items()}
    losses, hits = [], []
    for pair in pairs:
        view, q, k = pair.query, queries[pair.query], keys[pair.key].to(rows.dtype)
        own = (q.detach() * k).sum(dim=1)
        others = distributed.gather(k) if in_batch_negatives else None
        cosines = own.unsqueeze(1) if others is None else q.detach().to(k.dtype) @ others.T
        e = (cosines / tau).exp()
        pull = e * k if others is None else e @ others
        losses.append(_cross_entropy(q, swept.sums[view] + e.sum(dim=1), swept.pulls[view] + pull, own, k, tau))
        hits.append(own * (1 + 1e-6) >= torch.maximum(swept.nearest[view], cosines.amax(dim=1)))
        if objective == "J":
            shares[view] += pair.weight
        elif tau_bank is not None:
            sums = swept.bank_sums[view] + (cosines / tau_bank).exp().sum(dim=1)
            shares[view] += pair.weight / (tau_bank * distributed.ranks() * len(q) * sums)
    if objective == "J":
        _over_queries(swept, sharded)
    ascent = None if tau_bank is None else _ascent(swept, shares, rows, sharded)
    return _contrast(pairs, losses, hits, ascent)


def _over_queries(swept: Sweep, sharded: bool) -> None:
    """Turn the blocks into softmaxes over the queries of each view on all ranks, in place (section 4.1)."""
    for block in swept.blocks:
        of_view = block.unflatten(0, (-1, len(swept.sums)))
        sums = of_view.sum(dim=0)
        of_view.div_(sums if sharded else distributed.total(sums))
