"""Softmax cross-entropy against a memory bank, in one pass over the bank; what AdCo's and CaCo's losses share.

Notation (AdCo, section 3): q (N, D) unit queries, k (N, D) unit keys, W (K, D) raw bank rows, n = W / |W|. A sharded
bank is split over the ranks: K then counts this rank's rows, and all ranks' queries are compared with them.

Cosines lie in [-1, 1], so exp(cosine / tau) is summed without subtracting a maximum, and the sums of several ranks add
up. Ranks exchange queries and sums, never bank rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adco.losses.bank_gradient import BankGradient, Workspace, through_normalization
from adco.losses.pairs import Pair
from adco.utils import distributed

BLOCK = {"cpu": 2**19, "cuda": 2**24}  # cosines at a time: on a CPU they stay in the cache
LOG2_E = 1 / math.log(2)

PerView = Mapping[int, Tensor]  # number of the view -> one row for each image


@dataclass(frozen=True)
class LossOutput:
    """The result of a loss against the bank.

    Attributes:
        loss: Scalar, the sum over pairs of weight * cross-entropy. Its gradient reaches the queries.
        bank_gradient: Gradient that the raw rows W ascend, the mean over all ranks' queries; None for a queue.
        cross_entropies: (pairs,) without gradient, each the mean over this rank's queries.
        accuracy: Scalar in [0, 1], the share of queries whose positive has the largest logit, the mean over pairs.
    """

    loss: Tensor
    bank_gradient: BankGradient | None
    cross_entropies: Tensor
    accuracy: Tensor


@dataclass(frozen=True)
class SoftmaxStats:
    """What one pass of the queries over the whole bank gives. The first four hold this rank's N queries of each view.

    Attributes:
        sums: (N,) sum_k exp(q.n_k / tau).
        weighted_sums: (N, D) sum_k exp(q.n_k / tau) n_k.
        nearest: (N,) max_k q.n_k.
        bank_sums: (N,) sum_k exp(q.n_k / tau_bank); zeros if the bank does not learn.
        queries: (M, D) the queries that this rank's bank rows are compared with: of all views, if sharded of all ranks.
        blocks: exp(q.n_k / tau_bank), (M, chunk) for each chunk of bank rows; empty if the bank does not learn.
        workspace: Owner of the memory of `blocks`.
    """

    sums: PerView
    weighted_sums: PerView
    nearest: PerView
    bank_sums: PerView
    queries: Tensor
    blocks: list[Tensor]
    workspace: Workspace

    def bank_gradient(
        self, weights: PerView, bank: Tensor, sharded: bool, extra: Sequence[tuple[Tensor, Tensor]] = ()
    ) -> BankGradient:
        """The gradient on the raw rows: sum_i weights_i blocks_ik q_i, and `extra`, through the normalisation.

        Args:
            weights: (N,) factor of each query, for each view.
            bank: (K, D) raw rows, as `streamed_softmax` was given them.
            sharded: As there.
            extra: (M,) numbers of rows and (M, D) further gradients on those unit rows; they are overwritten.
        """
        by_query = torch.stack([weights[view] for view in sorted(weights)], dim=1)  # (N, V)
        by_query = (distributed.all_gather(by_query) if sharded else by_query).view(-1, 1)
        further = [(label, through_normalization(gradient, bank[label])) for label, gradient in extra]
        workspace = self.workspace
        return BankGradient(
            self.queries * by_query, self.blocks, bank, further, sharded, workspace, workspace.evaluations
        )


def streamed_softmax(
    queries: PerView,
    pairs: Sequence[Pair],
    bank: Tensor,
    tau: float,
    tau_bank: float | None,
    sharded: bool,
    workspace: Workspace | None = None,
) -> SoftmaxStats:
    """Compare the pairs' queries with the bank, a chunk of rows at a time. Carries no gradient.

    Args:
        queries: (N, D) unit queries of each view.
        pairs: The pairs whose queries are needed.
        bank: (K, D) raw rows; `computable` gives them in a dtype in which the sums fit.
        tau: Temperature of the encoder's loss.
        tau_bank: Temperature of the bank's gradient; None: no block is kept.
        sharded: Whether `bank` is this rank's part of a bank that is split over the ranks.
        workspace: Memory that is used again; None: memory of its own.

    Returns:
        The sums over the whole bank, and the blocks that the bank's gradient is made of.
    """
    workspace = Workspace() if workspace is None else workspace
    views = sorted({pair.query for pair in pairs})
    q = torch.stack([queries[view].detach() for view in views], dim=1).to(bank.dtype)  # (N, V, D)
    q = (distributed.all_gather(q) if sharded else q).flatten(0, 1)  # (M, D)
    sums, nearest = q.new_zeros(len(q)), q.new_full((len(q),), -math.inf)
    weighted_sums, bank_sums, blocks = torch.zeros_like(q), torch.zeros_like(sums), []
    scaled, chunks = q * (LOG2_E / tau), row_chunks(bank, len(q))
    one_block = len(q) * len(chunks[0])
    memory = workspace.take(one_block + (len(q) * len(bank) if tau_bank is not None else 0), q)
    first, rest = memory.tensor_split([one_block])
    for rows in chunks:
        n, shape = rows / rows.norm(dim=1, keepdim=True), (len(q), len(rows))
        # logits at tau, to the base 2, whose exponential is faster: (M, chunk)
        logits = torch.mm(scaled, n.T, out=first[: math.prod(shape)].view(shape))
        nearest = torch.maximum(nearest, logits.amax(dim=1))
        if tau_bank is not None:
            # the bank's exponentials at its own temperature, kept for its gradient
            block, rest = rest.tensor_split([math.prod(shape)])
            blocks.append(torch.mul(logits, tau / tau_bank, out=block.view(shape)).exp2_())
            bank_sums += blocks[-1].sum(dim=1)
        exponentials = logits.exp2_()
        sums += exponentials.sum(dim=1)
        weighted_sums.addmm_(exponentials, n)
    nearest *= tau / LOG2_E  # cosines again
    if sharded:
        # each rank has summed over its own rows, for the queries of all ranks
        sums, bank_sums = distributed.all_reduce_sum(torch.stack([sums, bank_sums]))
        nearest = distributed.all_reduce_max(nearest)
        sums, bank_sums, nearest = map(distributed.local_shard, (sums, bank_sums, nearest))
        weighted_sums = distributed.reduce_scatter_sum(weighted_sums)

    def per_view(values: Tensor) -> PerView:
        return dict(zip(views, values.unflatten(0, (-1, len(views))).unbind(1), strict=True))

    by_view = map(per_view, (sums, weighted_sums, nearest, bank_sums))
    return SoftmaxStats(*by_view, queries=q, blocks=blocks, workspace=workspace)


def row_chunks(rows: Tensor, queries: int) -> tuple[Tensor, ...]:
    """The (K, ...) rows in chunks of which each makes at most BLOCK cosines with so many queries."""
    return rows.split(max(1, BLOCK[rows.device.type] // queries))


def computable(bank: Tensor, smallest_tau: float) -> Tensor:
    """The (K, D) rows in a dtype in which the sums fit: their own, or float64.

    A sum of e^20 terms exp(1 / smallest_tau), and its inverse, must be finite.
    """
    fits = 1 / smallest_tau + 20 < math.log(torch.finfo(bank.dtype).max)
    return bank if fits else bank.double()


def cross_entropy(
    q: Tensor, sums: Tensor, weighted_sums: Tensor, positive_cosine: Tensor, positive: Tensor, tau: float
) -> Tensor:
    """Mean of log(sums) - positive_cosine / tau over the queries, with its gradient in closed form.

    Args:
        q: (N, D) unit queries; the only argument that receives a gradient.
        sums: (N,) the softmax's denominators, sum_x exp(q.x / tau) over its columns x.
        weighted_sums: (N, D) sum_x exp(q.x / tau) x.
        positive_cosine: (N,) cosine of each query and its positive.
        positive: (N, D) unit positives.
        tau: Temperature.

    Returns:
        Scalar in the dtype of `q`.
    """
    value = (sums.log() - positive_cosine / tau).mean()
    gradient = (weighted_sums / sums.unsqueeze(1) - positive) / (tau * len(q))
    return _WithGradient.apply(q, value, gradient)


def loss_output(
    pairs: Sequence[Pair], losses: list[Tensor], hits: list[Tensor], bank_gradient: BankGradient | None
) -> LossOutput:
    """The weighted sum of the pairs' losses, and their mean accuracy.

    Args:
        pairs: The pairs, for their weights.
        losses: A scalar for each pair.
        hits: (N,) bool for each pair: whether the query's positive has the largest logit.
        bank_gradient: What the bank learns.
    """
    weighted = [pair.weight * loss for pair, loss in zip(pairs, losses, strict=True)]
    accuracy = torch.stack(hits).float().mean()
    return LossOutput(torch.stack(weighted).sum(), bank_gradient, torch.stack(losses).detach(), accuracy)


class _WithGradient(torch.autograd.Function):
    """The scalar `value`, whose gradient to q is known."""

    @staticmethod
    def forward(ctx, q: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.to(q.dtype)

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple[Tensor, None, None]:
        return scale * ctx.saved_tensors[0], None, None
