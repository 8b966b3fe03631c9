"""Pure functions of the contrastive game: which query meets which key, the encoder's loss, the bank's ascent.

Notation (AdCo paper, section 3): q (N, D) unit queries, k (N, D) unit keys, W (K, D) raw bank rows, n = W / |W|. Where
the bank is sharded, K is this rank's part of it, and it meets the queries of all ranks.

One pass over the bank serves encoder and bank. Cosines lie in [-1, 1], so exp(cosine / tau) is summed without
taking a maximum out, and the sums of several ranks just add up: ranks exchange queries and sums, never bank rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adco.losses.pairs import Pair
from adco.utils import distributed

BLOCK = {"cpu": 2**19, "cuda": 2**24}  # cosines at a time: on the CPU they stay in the cache

LOG2_E = 1 / math.log(2)
_HELD: dict[torch.dtype, Tensor] = {}

PerView = Mapping[int, Tensor]  # view -> one row a sample


@dataclass(frozen=True)
class BankGradient:
    """The gradient on the raw rows W, (K, D), made a chunk of rows at a time as it is used: it is never all in memory.

    On the CPU it is lost at the next evaluation, whose memory is the same. queries: (M, D), weighted; blocks: what they
    give to each chunk of rows; further: numbers of rows and finished gradients on them; sharded: of this rank's rows.
    """

    queries: Tensor
    blocks: list[Tensor]
    bank: Tensor
    further: list[tuple[Tensor, Tensor]]
    sharded: bool

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Which rows, and the gradient on them; rows may change once they were given out."""
        start = 0
        for block in self.blocks:
            place = slice(start, start + block.shape[1])
            gradient = through_normalization(block.T @ self.queries, self.bank[place])
            for label, more in self.further:
                here = (label >= place.start) & (label < place.stop)
                gradient.index_add_(0, (label - start).clamp(0, len(gradient) - 1), more * here.unsqueeze(1))
            yield place, gradient if self.sharded else distributed.all_reduce_sum(gradient)
            start = place.stop

    def whole(self) -> Tensor:
        """All of it, (K, D)."""
        return torch.cat([gradient for _, gradient in self])


@dataclass(frozen=True)
class LossOutput:
    """What one evaluation gives.

    loss: scalar, sum over pairs of weight * cross-entropy, with gradient to the queries
    ascent: along which the raw rows W move, mean over all ranks' queries; None: not asked for
    cross_entropies: one scalar a pair; accuracy: share of queries whose positive has the largest logit, mean over pairs
    """

    loss: Tensor
    bank_gradient: BankGradient | None
    cross_entropies: Tensor
    accuracy: Tensor


@dataclass(frozen=True)
class SoftmaxStats:
    """What one pass of all views' queries over the whole bank leaves.

    Of this rank's N queries of each view: sums (N,) sum_k exp(q.n_k / tau); pulls (N, D) the same sum times n_k;
    nearest (N,) max_k q.n_k; bank_sums (N,) sum_k exp(q.n_k / tau_bank).
    queries: (M, D) all that this rank's rows meet; blocks: exp(q.n_k / tau_bank), (M, chunk) a chunk of rows.
    """

    sums: PerView
    weighted_sums: PerView
    nearest: PerView
    bank_sums: PerView
    queries: Tensor
    blocks: list[Tensor]


def streamed_softmax(
    queries: PerView, pairs: Sequence[Pair], bank: Tensor, tau: float, tau_bank: float | None, sharded: bool
) -> SoftmaxStats:
    """Pass the pairs' unit queries over the bank's unit rows, a chunk at a time; over all ranks' rows if sharded."""
    views = sorted({pair.query for pair in pairs})
    q = torch.stack([queries[view].detach() for view in views], dim=1).to(bank.dtype)  # (N, V, D)
    q = (distributed.all_gather(q) if sharded else q).flatten(0, 1)
    sums, nearest = q.new_zeros(len(q)), q.new_full((len(q),), -math.inf)
    weighted_sums, bank_sums, blocks = torch.zeros_like(q), torch.zeros_like(sums), []
    sharp, chunks = q * (LOG2_E / tau), _chunks(bank, len(q))
    one, learns = len(q) * len(chunks[0]), tau_bank is not None
    first, rest = _memory(one + learns * len(q) * len(bank), q).tensor_split([one])
    for rows in chunks:
        n, shape = rows / rows.norm(dim=1, keepdim=True), (len(q), len(rows))
        logits = torch.mm(sharp, n.T, out=first[: math.prod(shape)].view(shape))
        nearest = torch.maximum(nearest, logits.amax(dim=1))
        if learns:
            block, rest = rest.tensor_split([math.prod(shape)])
            blocks.append(torch.mul(logits, tau / tau_bank, out=block.view(shape)).exp2_())
            bank_sums += blocks[-1].sum(dim=1)
        e = logits.exp2_()  # to the base 2, whose exponential is the fast one
        sums += e.sum(dim=1)
        weighted_sums.addmm_(e, n)
    nearest *= tau / LOG2_E
    if sharded:
        sums, bank_sums = distributed.all_reduce_sum(torch.stack([sums, bank_sums]))
        sums, bank_sums, nearest = map(distributed.local_shard, (sums, bank_sums, distributed.all_reduce_max(nearest)))
        weighted_sums = distributed.reduce_scatter_sum(weighted_sums)

    def per_view(found: Tensor) -> PerView:
        return dict(zip(views, found.unflatten(0, (-1, len(views))).unbind(1), strict=True))

    return SoftmaxStats(*map(per_view, (sums, weighted_sums, nearest, bank_sums)), q, blocks)


def through_normalization(pull: Tensor, rows: Tensor) -> Tensor:
    """The gradient on raw rows W of a pull on n = W / |W| (footnote 1): (pull - (pull.n) n) / |W|, in place; (K, D)."""
    lengths = rows.norm(dim=1, keepdim=True)
    along = torch.linalg.vecdot(pull, rows).unsqueeze(1).div_(lengths.square())
    return pull.addcmul_(along, rows, value=-1).div_(lengths)


def _ascent(
    stats: SoftmaxStats, shares: PerView, bank: Tensor, sharded: bool, pulled: Sequence[tuple[Tensor, Tensor]] = ()
) -> BankGradient:
    """The queries' pull on each unit row, `blocks` times their `shares` (N,), and further pulls on some rows (M, D)."""
    share = torch.stack([shares[view] for view in sorted(shares)], dim=1)
    weighted = stats.queries * (distributed.all_gather(share) if sharded else share).view(-1, 1)
    further = [(label, through_normalization(pull, bank[label])) for label, pull in pulled]
    return BankGradient(weighted, stats.blocks, bank, further, sharded)


def _chunks(rows: Tensor, queries: int) -> tuple[Tensor, ...]:
    """The (K, ...) rows in chunks that make blocks of BLOCK cosines with so many queries."""
    return rows.split(max(1, BLOCK[rows.device.type] // queries))


def _memory(numbers: int, like: Tensor) -> Tensor:
    """Uninitialised numbers for one evaluation. On the CPU the last evaluation's, because fresh pages cost as much as
    a matrix product; a GPU's allocator does that by itself."""
    if like.is_cuda:
        return like.new_empty(numbers)
    held = _HELD.get(like.dtype)
    if held is None or len(held) < numbers:
        held = _HELD[like.dtype] = like.new_empty(numbers)
    return held[:numbers]


def _precise(bank: Tensor, sharpest: float) -> Tensor:
    """The rows in the dtype that sums over e^20 of exp(1 / sharpest) and its inverse fit in: bank.dtype or float64."""
    fits = 1 / sharpest + 20 < math.log(torch.finfo(bank.dtype).max)
    return bank if fits else bank.double()


def _contrast(
    pairs: Sequence[Pair], losses: list[Tensor], hits: list[Tensor], ascent: BankGradient | None
) -> LossOutput:
    loss = sum(pair.weight * loss for pair, loss in zip(pairs, losses, strict=True))
    return LossOutput(loss, ascent, torch.stack(losses).detach(), torch.stack(hits).float().mean())


def _cross_entropy(
    q: Tensor, sums: Tensor, weighted_sums: Tensor, cosine: Tensor, positive: Tensor, tau: float
) -> Tensor:
    """Mean of log(sums) - cosine / tau over the N queries, as a scalar that hands q its closed-form gradient.

    sums: (N,) the softmax's denominators; pulls: (N, D) sum over its columns x of exp(q.x / tau) x; positive: (N, D)
    """
    gradient = (weighted_sums / sums.unsqueeze(1) - positive) / (tau * len(q))
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
