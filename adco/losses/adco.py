"""AdCo's objective (Hu et al., CVPR 2021): negatives that are trained against the encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adco.losses.bank_gradient import Workspace
from adco.losses.bank_softmax import (
    LossOutput,
    PerView,
    SoftmaxStats,
    computable,
    cross_entropy,
    loss_output,
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
    workspace: Workspace | None = None,
) -> LossOutput:
    """The encoder's loss, eq. (1) at `tau`, and the bank's gradient, eqs. (4)-(6) at `tau_bank` or that of J.

    Args:
        queries: (N, D) unit queries of each view; the loss's gradient reaches them.
        keys: (N, D) unit keys of each view, without gradient; the positives.
        pairs: Which query view is compared with which key view.
        bank: (K, D) raw rows W; their unit rows are the negatives.
        tau: Temperature of the encoder's loss, above 0.
        tau_bank: Temperature of the bank's gradient; None: the bank does not learn (MoCo's queue).
        in_batch_negatives: Whether all keys of all ranks but the positive are negatives too, as released.
        objective: What the bank ascends: `loss`, or `J` of section 4.1.
        sharded: Whether `bank` is this rank's part of a bank that is split over the ranks.
        workspace: Memory that the next evaluation uses again; None: memory of its own.

    Returns:
        Loss, gradient on W, cross-entropy of each pair, and accuracy.
    """
    rows = computable(bank, min(tau, tau_bank or tau))
    stats = streamed_softmax(queries, pairs, rows, tau, tau_bank, sharded, workspace)
    weights = {view: torch.zeros_like(sums) for view, sums in stats.sums.items()}  # in the bank's gradient
    losses, hits = [], []
    for pair in pairs:
        view, q, k = pair.query, queries[pair.query], keys[pair.key].to(rows.dtype)
        positive_cosine = (q.detach() * k).sum(dim=1)  # positive: (N,)
        all_keys = distributed.all_gather(k) if in_batch_negatives else None
        # cosines with the positive alone, (N, 1), or with the keys of all ranks, (N, ranks * N)
        cosines = positive_cosine.unsqueeze(1) if all_keys is None else q.detach().to(k.dtype) @ all_keys.T
        exponentials = (cosines / tau).exp()
        weighted_keys = exponentials * k if all_keys is None else exponentials @ all_keys
        # the softmax runs over the keys and the bank
        sums = stats.sums[view] + exponentials.sum(dim=1)
        weighted_sums = stats.weighted_sums[view] + weighted_keys
        losses.append(cross_entropy(q, sums, weighted_sums, positive_cosine, k, tau))
        hits.append(positive_cosine * (1 + 1e-6) >= torch.maximum(stats.nearest[view], cosines.amax(dim=1)))
        if objective == "J":
            weights[view] += pair.weight
        elif tau_bank is not None:
            # eq. (6): each query pulls a row with its probability at tau_bank, the mean over all ranks' queries
            bank_sums = stats.bank_sums[view] + (cosines / tau_bank).exp().sum(dim=1)
            weights[view] += pair.weight / (tau_bank * distributed.world_size() * len(q) * bank_sums)
    if objective == "J":
        _softmax_over_queries(stats, sharded)
    gradient = None if tau_bank is None else stats.bank_gradient(weights, rows, sharded)
    return loss_output(pairs, losses, hits, gradient)


def _softmax_over_queries(stats: SoftmaxStats, sharded: bool) -> None:
    """Make the blocks softmaxes over the queries of each view on all ranks, in place (section 4.1)."""
    for block in stats.blocks:
        of_view = block.unflatten(0, (-1, len(stats.sums)))  # (queries, views, chunk)
        sums = of_view.sum(dim=0)
        of_view.div_(sums if sharded else distributed.all_reduce_sum(sums))
