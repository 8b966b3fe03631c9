"""MoCHi (Kalantidis et al., NeurIPS 2020): MoCo with more negatives, mixed for each query from its hardest ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adco.config.schema import MoCHiConfig, PretrainConfig
from adco.losses.bank_softmax import LossOutput
from adco.methods.base import TrainingProgress
from adco.methods.moco import MoCo
from adco.utils import distributed, philox
from adco.utils.device import upload


class MoCHi(MoCo):
    """From `mix.from_epoch` on, synthetic negatives join the softmax, without gradient through their making.

    Every rank holds the whole queue, because the hardest rows are sought in all of it.
    """

    def __init__(self, recipe: PretrainConfig):
        super().__init__(replace(recipe, bank=replace(recipe.bank, placement="replicated")))
        self.mix = recipe.mix

    def contrastive_loss(
        self, queries: Mapping[int, Tensor], keys: Mapping[int, Tensor], moment: TrainingProgress
    ) -> LossOutput:
        if moment.epoch < self.mix.from_epoch:
            return super().contrastive_loss(queries, keys, moment)
        n, losses, hits = F.normalize(self.bank.rows, dim=1), [], []
        for pair in self.pairs:
            q, k = queries[pair.query], keys[pair.key]
            u = upload(self.numbers(len(q), pair.query, moment.step).to(q.dtype), q.device)
            logits, label = self.logits(q, k, n, mixed(q.detach(), n, self.mix, u))
            losses.append(F.cross_entropy(logits, label))
            hits.append(logits.argmax(dim=1) == label)
        loss = sum(pair.weight * loss for pair, loss in zip(self.pairs, losses, strict=True))
        return LossOutput(loss, None, torch.stack(losses).detach(), torch.stack(hits).float().mean())

    def logits(self, q: Tensor, k: Tensor, n: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, keys (B, D), queue (K, D), synthetic negatives (B, S, D) -> (B, columns) and (B,) the positives."""
        if self.contrast.in_batch_negatives:
            near, first = q @ distributed.all_gather(k).T, distributed.rank() * len(q)
            label = torch.arange(first, first + len(q), device=q.device)
        else:
            near, label = (q * k).sum(dim=1, keepdim=True), torch.zeros(len(q), dtype=torch.long, device=q.device)
        return torch.cat([near, q @ n.T, torch.einsum("bd,bsd->bs", q, h)], dim=1) / self.contrast.tau, label

    def numbers(self, count: int, view: int, step: int) -> Tensor:
        """(count, 3 pairs + 2 with_query) uniforms in [0, 1), a function of (seed, step, place in the batch, view)."""
        places = distributed.rank() * count + np.arange(count)
        draws = 3 * self.mix.pairs + 2 * self.mix.with_query
        return torch.from_numpy(philox.uniforms(self.seed, step, places, view, draws, philox.MIX))


@torch.no_grad()
def mixed(q: Tensor, n: Tensor, mix: MoCHiConfig, u: Tensor) -> Tensor:
    """Synthetic negatives of each query (section 4): (B, pairs + with_query, D) unit rows.

    q: (B, D); n: (K, D) unit rows. u: (B, 3 pairs + 2 with_query) uniforms: which of the `hard` rows nearest to the
    query, which others and the share of the first, for the pairs; then which row and the query's share, below a half.
    """
    hard = (q @ n.T).topk(mix.hard, dim=1).indices
    first, second, share, partner, part = u.split([mix.pairs] * 3 + [mix.with_query] * 2, dim=1)

    def rows(which: Tensor) -> Tensor:
        return n[hard.gather(1, (which * mix.hard).long().clamp(max=mix.hard - 1))]

    pairs = torch.lerp(rows(second), rows(first), share.unsqueeze(2))
    with_query = torch.lerp(rows(partner), q.unsqueeze(1), 0.5 * part.unsqueeze(2))
    return F.normalize(torch.cat([pairs, with_query], dim=1), dim=2)
