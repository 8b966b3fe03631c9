"""Pure functions of the contrastive game: which query meets which key, the encoder's loss, the bank's direction.

Notation (AdCo paper, section 3): q (N, D) unit queries, k (N, D) unit keys, n = W / |W| (K, D) unit bank rows. Where
the bank is sharded, K is this rank's part of it, and the M queries that its rows meet are those of all ranks; else M = N.

One sweep over the bank serves both sides of the game. Cosines lie in [-1, 1], so exp(cosine / tau) is summed without
taking a maximum out, and the sums of several ranks just add up: ranks exchange queries and sums, never bank rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adco import distributed

CHUNK = {"cpu": 2048, "cuda": 16384}  # bank rows at a time: on the CPU a block of cosines stays in the cache


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
    direction: (K, D) along which the raw rows W move, mean over all ranks' queries; None: not asked for
    cross_entropies: one scalar a pair; accuracy: share of queries whose positive has the largest logit, mean over pairs
    """

    loss: Tensor
    direction: Tensor | None
    cross_entropies: Tensor
    accuracy: Tensor


@dataclass(frozen=True)
class Sweep:
    """What a pass of the queries over the whole bank leaves. sums, pulls and nearest are of this rank's queries.

    queries: (M, D); nearest: (N,) max_k q.n_k; sums: (N,) sum_k exp(q.n_k / tau); pulls: (N, D) the same sum times n_k
    bank_sums: (M,) sum_k exp(q.n_k / tau_bank); blocks: exp(q.n_k / tau_bank) of this rank's rows, (M, chunk) each
    """

    queries: Tensor
    sums: Tensor
    pulls: Tensor
    nearest: Tensor
    bank_sums: Tensor | None
    blocks: list[Tensor]


def make_pairs(views: int, symmetric: bool) -> tuple[Pair, ...]:
    """The weighted query-key pairs of single crop, symmetric, multi-crop and symmetric multi-crop AdCo.

    The last view is the key of all others and their losses are summed (one query view: single crop). Symmetric: the
    first view is a key of all others as well, and the mean of the two directions is taken.
    """
    keys = (views - 1, 0) if symmetric else (views - 1,)
    return tuple(Pair(query, key, 1 / len(keys)) for key in keys for query in range(views) if query != key)


def adversarial_contrast(
    queries: dict[int, Tensor],
    keys: dict[int, Tensor],
    pairs: Sequence[Pair],
    bank: Tensor,
    tau: float,
    tau_bank: float | None,
    in_batch_negatives: bool,
    objective: str = "loss",
    sharded: bool = False,
) -> Contrast:
    """AdCo: eq. (1) at tau for the encoder; for the bank the ascent of eqs. (4)-(6) at tau_bank, or of J (section 4.1).

    queries: view -> (N, D) unit rows with gradient. keys: view -> (N, D) unit rows without. bank: (K, D) raw rows W.
    tau_bank None: no direction (a queue does not learn). objective: `loss` or `J`.
    """

    def evaluate(pair: Pair, n: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        q, k = queries[pair.query], keys[pair.key].to(n.dtype)
        swept = sweep(q, n, tau, tau_bank, sharded)
        own = (q.detach() * k).sum(dim=1)
        others = distributed.gather(k) if in_batch_negatives else None
        cosines = own.unsqueeze(1) if others is None else q.detach().to(n.dtype) @ others.T
        e = (cosines / tau).exp()
        pull = e * k if others is None else e @ others
        loss = _cross_entropy(q, swept.sums + e.sum(dim=1), swept.pulls + pull, own, k, tau)
        hit = own * (1 + 1e-6) >= torch.maximum(swept.nearest, cosines.amax(dim=1))
        if tau_bank is None:
            return loss, hit, None
        if objective == "J":
            return loss, hit, _pull_to_likely_queries(swept, sharded)
        more = (cosines / tau_bank).exp().sum(dim=1)
        return loss, hit, _pull(swept, swept.bank_sums + (distributed.gather(more) if sharded else more))

    scale = 1.0 if objective == "J" else 1 / (tau_bank or 1.0)
    return _play(pairs, evaluate, bank, min(tau, tau_bank or tau), tau_bank and scale, sharded)


def cooperative_contrast(
    queries: dict[int, Tensor],
    keys: dict[int, Tensor],
    pairs: Sequence[Pair],
    bank: Tensor,
    tau: float,
    tau_bank: float,
    sharded: bool = False,
) -> Contrast:
    """CaCo: the positive of a query is the bank row nearest to its key, y = argmax_k k.n_k, all other rows negatives.

    The bank's direction pulls a row towards the query with weight p as a negative and 1 - p as the positive: it lowers
    the loss through the positives and raises it through the negatives. Arguments as in `adversarial_contrast`.
    """

    def evaluate(pair: Pair, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = queries[pair.query], keys[pair.key].to(n.dtype)
        swept = sweep(q, n, tau, tau_bank, sharded)
        label = nearest_row(k, n, sharded) - (distributed.rank() * len(n) if sharded else 0)
        mine = (label >= 0) & (label < len(n))
        positive = n[label.clamp(0, len(n) - 1)] * mine.unsqueeze(1)
        if sharded:
            positive = distributed.own_total(positive)
        cosine = (q.detach() * positive).sum(dim=1)
        loss = _cross_entropy(q, swept.sums, swept.pulls, cosine, positive, tau)
        for number, block in enumerate(swept.blocks):
            column = label - number * CHUNK[n.device.type]
            here = (mine & (column >= 0) & (column < block.shape[1])).unsqueeze(1)
            column = column.clamp(0, block.shape[1] - 1).unsqueeze(1)
            p = block.gather(1, column)
            block.scatter_(1, column, torch.where(here, swept.bank_sums.unsqueeze(1) - p, p))
        return loss, cosine >= swept.nearest * (1 - 1e-6), _pull(swept, swept.bank_sums)

    return _play(pairs, evaluate, bank, min(tau, tau_bank), 1 / tau_bank, sharded)


def sweep(q: Tensor, n: Tensor, tau: float, tau_bank: float | None, sharded: bool) -> Sweep:
    """Pass unit queries q (N, D) over the unit rows n (K, D), a chunk at a time; over all ranks' rows if sharded."""
    queries = q.detach().to(n.dtype)
    queries = distributed.gather(queries) if sharded else queries
    sums, nearest = queries.new_zeros(len(queries)), queries.new_full((len(queries),), -math.inf)
    pulls, bank_sums, blocks = torch.zeros_like(queries), torch.zeros_like(sums), []
    for rows in n.split(CHUNK[n.device.type]):
        cosines = queries @ rows.T
        nearest = torch.maximum(nearest, cosines.amax(dim=1))
        if tau_bank is not None:
            blocks.append((cosines / tau_bank).exp_())
            bank_sums += blocks[-1].sum(dim=1)
        e = cosines.mul_(1 / tau).exp_()
        sums += e.sum(dim=1)
        pulls.addmm_(e, rows)
    if sharded:
        sums, bank_sums = distributed.total(torch.stack([sums, bank_sums]))
        sums, nearest = distributed.own(sums), distributed.own(distributed.largest(nearest))
        pulls = distributed.own_total(pulls)
    return Sweep(queries, sums, pulls, nearest, bank_sums, blocks)


def nearest_row(k: Tensor, n: Tensor, sharded: bool) -> Tensor:
    """The number, in the whole bank, of the row with the largest cosine to each key: (N, D), (K, D) -> (M,) int64.

    Among equals the first row wins. M: the keys of all ranks, if sharded.
    """
    keys, size = distributed.gather(k) if sharded else k, CHUNK[n.device.type]
    best, label = k.new_full((len(keys),), -math.inf), torch.zeros(len(keys), dtype=torch.long, device=k.device)
    for start in range(0, len(n), size):
        cosines = keys @ n[start : start + size].T
        value, column = cosines.max(dim=1)
        better = value > best
        best, label = torch.where(better, value, best), torch.where(better, column + start, label)
    if not sharded:
        return label
    bests = distributed.gather(best.unsqueeze(0))  # (ranks, M)
    labels = distributed.gather(label.unsqueeze(0) + distributed.rank() * len(n))
    return labels.gather(0, bests.argmax(dim=0, keepdim=True)).squeeze(0)


def _play(
    pairs: Sequence[Pair], evaluate: Callable, bank: Tensor, sharpest: float, scale: float | None, sharded: bool
) -> Contrast:
    """Sum `evaluate` over the pairs; the pulls on unit rows become a direction on raw rows. scale None: no direction.

    sharpest: the lowest temperature; where it would overflow or underflow bank.dtype, float64 is computed in.
    """
    norms = bank.norm(dim=1, keepdim=True)
    fits = 1 / sharpest + 20 < math.log(torch.finfo(bank.dtype).max)  # 20: a sum over e^20 columns
    n = (bank / norms).to(bank.dtype if fits else torch.float64)
    losses, hits, pull = [], [], None
    for pair in pairs:
        loss, hit, more = evaluate(pair, n)
        losses.append(loss)
        hits.append(hit)
        if scale is not None:
            pull = more.mul_(pair.weight) if pull is None else pull.add_(more, alpha=pair.weight)
    losses = torch.stack(losses)
    weights = losses.new_tensor([pair.weight for pair in pairs])
    direction = None
    if scale is not None:
        pull = pull if sharded else distributed.total(pull)
        direction = tangent(pull, n).div_(norms).mul_(scale).to(bank.dtype)
    return Contrast((weights * losses).sum(), direction, losses.detach(), torch.stack(hits).float().mean())


def tangent(pull: Tensor, n: Tensor) -> Tensor:
    """The part of each row of `pull` that turns the unit row n instead of stretching it (footnote 1): both (K, D)."""
    return torch.addcmul(pull, (pull * n).sum(dim=1, keepdim=True), n, value=-1)


def _pull(swept: Sweep, sums: Tensor) -> Tensor:
    """(K, D): the mean over all ranks' queries of p(n_k | q) q, with the softmax's denominators `sums` (M,)."""
    return _weighted(swept.blocks, swept.queries / (sums * distributed.ranks() * len(swept.sums)).unsqueeze(1))


def _pull_to_likely_queries(swept: Sweep, sharded: bool) -> Tensor:
    """(K, D): sum_i p(q_i | n_k) q_i, a softmax over all ranks' queries (section 4.1)."""
    sums = torch.cat([block.sum(dim=0) for block in swept.blocks])
    return _weighted(swept.blocks, swept.queries).div_((sums if sharded else distributed.total(sums)).unsqueeze(1))


def _weighted(blocks: list[Tensor], queries: Tensor) -> Tensor:
    return torch.cat([block.T @ queries for block in blocks])


def _cross_entropy(q: Tensor, sums: Tensor, pulls: Tensor, cosine: Tensor, positive: Tensor, tau: float) -> Tensor:
    """Mean of log(sums) - cosine / tau over the N queries, as a scalar that hands q its closed-form gradient.

    sums: (N,) the softmax's denominators; pulls: (N, D) sum over its columns x of exp(q.x / tau) x; positive: (N, D)
    """
    gradient = (pulls / sums.unsqueeze(1) - positive) / (tau * len(q))
    return _WithGradient.apply(q, (sums.log() - cosine / tau).mean(), gradient)


class _WithGradient(torch.autograd.Function):
    """The scalar `value`, whose gradient to q is known."""

    @staticmethod
    def forward(ctx, q: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.to(q.dtype)

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple[Tensor, None, None]:
        return scale * ctx.saved_tensors[0], None, None
