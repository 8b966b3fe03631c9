"""Metrics of the embedding, and warnings where they are bad: is the embedding spread out, is the bank in use?

Notation: q, k (B, D) unit queries and keys; n (K, D) unit rows of the bank. Where the bank is sharded, n are this
rank's rows, q is the same on every rank, and what is returned is of the whole bank, equal on every rank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from adco.utils import distributed

CHUNK_ROWS = 8192  # of the bank at a time
MOST_ROWS = 2048  # of a larger global batch, so many evenly spaced queries are looked at
IDLE_SHARE = 0.1  # an adversary is idle while no query gives it this share of 1 / K
DEAD_AFTER = 10  # evaluations in a row without use
PATIENCE = 3  # evaluations in a row before a change is reported


@dataclass(frozen=True)
class BankUse:
    """How a batch of queries distributes its softmax over the bank.

    Attributes:
        mass: (K,) mean of each row's probability over the queries.
        peak: (K,) the largest probability of each row.
        nearest: (B,) number of each query's nearest row, in the whole bank.
    """

    mass: Tensor
    peak: Tensor
    nearest: Tensor


class EmbeddingMetrics:
    """Computes the metrics of a run at one step after another; it counts how long each bank row has been idle.

    A call is collective: every rank calls it at the same steps.
    """

    def __init__(self) -> None:
        self.idle: Tensor | None = None  # (K,) evaluations since a row was last of use

    @torch.no_grad()
    def __call__(
        self, queries: Tensor, keys: Tensor, rows: Tensor | None, tau_bank: float, sharded: bool = False
    ) -> dict[str, float]:
        """The metrics of a step.

        Args:
            queries: (B, D) this rank's unit queries.
            keys: (B, D) this rank's unit keys.
            rows: (K, D) raw rows of the bank, this rank's if sharded; None for methods without a bank.
            tau_bank: Temperature of the softmax over the bank.
            sharded: Whether `rows` are this rank's part of the bank.

        Returns:
            Name -> value; empty if the embedding is not finite, which the loss reports.
        """
        few = max(2, MOST_ROWS // distributed.world_size())
        own, own_keys = (_evenly(x.detach().float(), few) for x in (queries, keys))
        q, k = distributed.all_gather(own), distributed.all_gather(own_keys)
        if not (q.isfinite().all() and k.isfinite().all()):
            return {}
        rank = effective_rank(q)
        metrics = {
            "alignment": alignment(q, k),
            "uniformity": uniformity(q),
            "effective_rank": rank,
            "effective_rank_share": rank / min(q.shape),
            "embedding_spread": spread(q),
        }
        if rows is not None:
            n = F.normalize(rows.detach().float(), dim=1)
            used = use_of_bank(q, n, tau_bank, sharded)
            self.idle = idle_evaluations(self.idle, used.peak, _size(n, sharded))
            metrics |= {
                "bank_entropy": entropy_share(used.mass, sharded),
                "bank_nearest_share": nearest_share(used.nearest),
                "bank_dead_share": dead_share(self.idle, sharded),
            }
        return {name: float(value) for name, value in metrics.items()}


def alignment(q: Tensor, k: Tensor) -> Tensor:
    """Mean squared distance of a query to its key, 0 to 4, smaller is better (Wang & Isola, ICML 2020, alpha = 2)."""
    return (q - k).square().sum(dim=1).mean()


def uniformity(q: Tensor) -> Tensor:
    """log of the mean of exp(-2 |qi - qj|^2) over pairs i < j (Wang & Isola, ICML 2020, t = 2).

    0 when all are one point, -4 uniformly over a sphere of many dimensions; smaller is more uniform.
    """
    return torch.pdist(q).square().mul(-2).exp().mean().log()


def effective_rank(q: Tensor) -> Tensor:
    """exp of the entropy of the singular values over their sum (Roy & Vetterli, EUSIPCO 2007), from 1 to min(B, D).

    Not centred, as in RankMe (Garrido et al., ICML 2023): all rows at one point is rank 1.
    """
    p = torch.linalg.svdvals(q)
    return torch.special.entr(p / p.sum()).sum().exp()


def spread(q: Tensor) -> Tensor:
    """Standard deviation over the batch, mean over the dimensions, times sqrt(D) (Chen & He, CVPR 2021, figure 2).

    1 uniformly over the sphere, 0 at one point; near sqrt(1 - mean cosine between queries).
    """
    return q.std(dim=0, correction=0).mean() * math.sqrt(q.shape[1])


def use_of_bank(q: Tensor, n: Tensor, tau_bank: float, sharded: bool = False) -> BankUse:
    """softmax(q.n / tau_bank) over the bank's rows, a chunk at a time, in two passes so that no temperature overflows.

    Args:
        q: (B, D) unit queries, the same on every rank.
        n: (K, D) unit rows, this rank's if sharded.
        tau_bank: Temperature.
        sharded: Whether `n` is this rank's part of the bank.
    """
    chunks, first = n.split(CHUNK_ROWS), distributed.rank() * len(n) if sharded else 0
    sums, values, labels = [], [], []
    for number, rows in enumerate(chunks):
        cosines = q @ rows.T
        value, column = cosines.max(dim=1)
        sums.append((cosines / tau_bank).logsumexp(dim=1))
        values.append(value)
        labels.append(column + first + number * CHUNK_ROWS)
    stacked = (torch.stack(parts) for parts in (sums, values, labels))  # (chunks, B), then (ranks * chunks, B)
    sums, values, labels = (distributed.all_gather(parts) if sharded else parts for parts in stacked)
    sums, nearest = sums.logsumexp(dim=0), labels.gather(0, values.argmax(dim=0, keepdim=True)).squeeze(0)
    masses, peaks = [], []
    for rows in chunks:
        p = (q @ rows.T / tau_bank - sums.unsqueeze(1)).exp_()
        masses.append(p.mean(dim=0))
        peaks.append(p.amax(dim=0))
    return BankUse(torch.cat(masses), torch.cat(peaks), nearest)


def bank_entropy(q: Tensor, n: Tensor, tau_bank: float, sharded: bool = False) -> Tensor:
    """Entropy of the batch's mean softmax over the bank, over log K: 1 when all rows are used alike, 0 when one is."""
    return entropy_share(use_of_bank(q, n, tau_bank, sharded).mass, sharded)


def entropy_share(mass: Tensor, sharded: bool = False) -> Tensor:
    """(K,) shares that sum to 1 (over all ranks, if sharded) -> their entropy over log K."""
    entropy = torch.special.entr(mass).sum()
    return (distributed.all_reduce_sum(entropy) if sharded else entropy) / math.log(max(2, _size(mass, sharded)))


def nearest_share(labels: Tensor) -> Tensor:
    """(M,) number of each query's nearest row -> the share of queries that have the most frequent one."""
    return labels.bincount().amax() / len(labels)


def idle_evaluations(before: Tensor | None, peak: Tensor, size: int) -> Tensor:
    """Count for each row the evaluations since it was last used.

    A row is used while some query gives it at least IDLE_SHARE / K of its softmax, a tenth of an equal share. The
    maximum over queries is taken, not the mean: at tau_bank = 0.02 the mean is that of a few rows near the queries even
    if rows and queries are uniform, and most rows would look unused although other batches need them.

    Args:
        before: (K,) int32 counts of the last evaluation; None: the first one.
        peak: (K,) largest probability of each row.
        size: Rows of the whole bank.

    Returns:
        (K,) int32 counts.
    """
    before = torch.zeros_like(peak, dtype=torch.int32) if before is None else before
    return (before + 1).masked_fill_(peak >= IDLE_SHARE / size, 0)


def dead_share(idle: Tensor, sharded: bool = False) -> Tensor:
    """The share of rows that were idle for the last DEAD_AFTER evaluations."""
    share = (idle >= DEAD_AFTER).float().mean()
    return distributed.all_reduce_mean(share) if sharded else share


@dataclass(frozen=True)
class Concern:
    """A warning and its condition.

    Attributes:
        name: Its name in messages.
        reads: The metrics that `bad` is given.
        bad: Whether their values are bad.
        message: What is seen, and what to do.
    """

    name: str
    reads: tuple[str, ...]
    bad: Callable[..., bool]
    message: str


CONCERNS = (
    # Runs of ours that learned were at a fifth or more; a spread of 0.1 is a mean cosine of 0.99 between queries.
    Concern(
        "collapse",
        ("effective_rank_share", "effective_rank", "embedding_spread"),
        lambda share, rank, spread: share < 0.05 or spread < 0.1,
        "the embedding collapses: effective rank {effective_rank:.1f}, {effective_rank_share:.0%} of what it could be, "
        "spread {embedding_spread:.2f} (1: uniform). Lower optimizer.lr or lengthen optimizer.warmup_epochs; BYOL and "
        "SimSiam: keep encoder.head_norm, raise encoder.key_momentum",
    ),
    # If half of the queries are nearest to one row, the other rows hardly matter.
    Concern(
        "one row",
        ("bank_nearest_share",),
        lambda share: share > 0.5,
        "{bank_nearest_share:.0%} of the queries have the same nearest row of the bank: rows, or queries, have become "
        "one. Raise contrast.tau_bank",
    ),
    # With nine idle rows in ten the bank works like one of a tenth of its size, at ten times the cost.
    Concern(
        "starving bank",
        ("bank_dead_share",),
        lambda share: share > 0.9,
        "{bank_dead_share:.0%} of the bank's rows have mattered to no query for long: they get no gradient and stay "
        "behind. Raise contrast.tau_bank, so that more than the nearest rows follow, or use a smaller bank.size",
    ),
    # With twice the readers up to this share of the time can be gained.
    Concern(
        "loader",
        ("loader_wait_share",),
        lambda share: share > 0.3,
        "{loader_wait_share:.0%} of the time goes into waiting for images. Raise data.workers, put the images on a "
        "local disk or into tar shards, or use data.in_memory=true for small ones",
    ),
    # kNN moves by a few percent from probe to probe; a fifth of the best score is more than that.
    Concern(
        "falling kNN",
        ("knn_top1", "knn_best"),
        lambda now, best: now < 0.8 * best,
        "the kNN probe fell to {knn_top1:.1f}% from {knn_best:.1f}%: features get worse. Go back to an earlier "
        "checkpoint with a lower optimizer.lr",
    ),
)


class HealthMonitor:
    """Warns once when a metric becomes bad, and once when it is well again, after PATIENCE evaluations in a row."""

    def __init__(self) -> None:
        self.warned: set[str] = set()
        self.streaks: Counter[str] = Counter()
        self.knn_best = 0.0

    def __call__(self, scalars: Mapping[str, float]) -> list[str]:
        """The messages to print, given the scalars of a step; what is not among them keeps its state."""
        if "knn_top1" in scalars:
            self.knn_best = max(self.knn_best, scalars["knn_top1"])
        scalars = {**scalars, "knn_best": self.knn_best}
        return [
            text for concern in CONCERNS if concern.reads[0] in scalars and (text := self._evaluate(concern, scalars))
        ]

    def _evaluate(self, concern: Concern, scalars: Mapping[str, float]) -> str | None:
        bad = concern.bad(*(scalars[name] for name in concern.reads))
        changed = bad != (concern.name in self.warned)
        self.streaks[concern.name] = self.streaks[concern.name] + 1 if changed else 0
        if self.streaks[concern.name] < PATIENCE:
            return None
        self.streaks[concern.name] = 0
        self.warned ^= {concern.name}
        return f"warning: {concern.message.format(**scalars)}" if bad else f"{concern.name}: well again"


def _evenly(rows: Tensor, most: int) -> Tensor:
    return rows[:: max(1, -(-len(rows) // most))]


def _size(n: Tensor, sharded: bool) -> int:
    return len(n) * distributed.world_size() if sharded else len(n)
