"""MoCHi (Kalantidis et al., NeurIPS 2020): MoCo with more negatives, mixed for each query from its hardest ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adco.config.schema import MoCHiConfig, PretrainConfig
from adco.losses.bank_softmax import LossOutput, loss_output
from adco.methods.base import TrainingProgress
from adco.methods.moco import MoCo
from adco.utils import distributed, philox
from adco.utils.device import upload


class MoCHi(MoCo):
    """From `mix.from_epoch` on, synthetic negatives are added to the softmax; they carry no gradient.

    Every rank holds the whole queue, because the nearest rows of all of it are needed.
    """

    def __init__(self, recipe: PretrainConfig):
        super().__init__(replace(recipe, bank=replace(recipe.bank, placement="replicated")))
        self.mix = recipe.mix

    def contrastive_loss(
        self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], progress: TrainingProgress
    ) -> LossOutput:
        """The loss of MoCo, from `mix.from_epoch` on with the synthetic negatives."""
        if progress.epoch < self.mix.from_epoch:
            return super().contrastive_loss(queries, keys, progress)
        n, losses, hits = F.normalize(self.bank.rows, dim=1), [], []
        for pair in self.pairs:
            q, k = queries[pair.query], keys[pair.key]
            u = upload(self.uniforms(len(q), pair.query, progress.step).to(q.dtype), q.device)
            logits, label = self.logits(q, k, n, mixed_negatives(q.detach(), n, self.mix, u))
            losses.append(F.cross_entropy(logits, label))
            hits.append(logits.argmax(dim=1) == label)
        return loss_output(self.pairs, losses, hits, None)

    def logits(self, q: Tensor, k: Tensor, n: Tensor, synthetic: Tensor) -> tuple[Tensor, Tensor]:
        """The softmax's logits, and which of them is the positive.

        Args:
            q: (B, D) unit queries, with gradient.
            k: (B, D) unit keys.
            n: (K, D) unit rows of the queue.
            synthetic: (B, S, D) unit synthetic negatives of each query.

        Returns:
            (B, columns) logits at `contrast.tau`, and (B,) int64 labels.
        """
        if self.contrast.in_batch_negatives:
            with_keys, first = q @ distributed.all_gather(k).T, distributed.rank() * len(q)  # (B, ranks * B)
            label = torch.arange(first, first + len(q), device=q.device)
        else:
            with_keys = (q * k).sum(dim=1, keepdim=True)  # (B, 1)
            label = torch.zeros(len(q), dtype=torch.long, device=q.device)
        negatives = [q @ n.T, torch.einsum("bd,bsd->bs", q, synthetic)]  # (B, K), (B, S)
        return torch.cat([with_keys, *negatives], dim=1) / self.contrast.tau, label

    def uniforms(self, count: int, view: int, step: int) -> Tensor:
        """(count, 3 pairs + 2 with_query) numbers in [0, 1), a function of (seed, step, place in the batch, view)."""
        places = distributed.rank() * count + np.arange(count)
        each = 3 * self.mix.pairs + 2 * self.mix.with_query
        return torch.from_numpy(philox.uniforms(self.seed, step, places, view, each, philox.MIX))


@torch.no_grad()
def mixed_negatives(q: Tensor, n: Tensor, mix: MoCHiConfig, u: Tensor) -> Tensor:
    """Synthetic negatives of each query (section 4), from the rows of the queue that are nearest to it.

    Args:
        q: (B, D) unit queries.
        n: (K, D) unit rows of the queue.
        mix: How many negatives are made of two rows, how many of a row and the query, and of how many nearest rows.
        u: (B, 3 pairs + 2 with_query) uniforms in [0, 1). For the pairs: the first row, the second row, the share of
            the first. Then: the row, and twice the share of the query.

    Returns:
        (B, pairs + with_query, D) unit rows, without gradient.
    """
    hard = (q @ n.T).topk(mix.hard, dim=1).indices
    first, second, share, partner, query_share = u.split([mix.pairs] * 3 + [mix.with_query] * 2, dim=1)

    def rows(which: Tensor) -> Tensor:
        return n[hard.gather(1, (which * mix.hard).long().clamp(max=mix.hard - 1))]

    pairs = torch.lerp(rows(second), rows(first), share.unsqueeze(2))
    with_query = torch.lerp(rows(partner), q.unsqueeze(1), 0.5 * query_share.unsqueeze(2))  # less than half the query
    return F.normalize(torch.cat([pairs, with_query], dim=1), dim=2)
