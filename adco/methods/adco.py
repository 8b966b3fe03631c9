"""AdCo (Hu et al., CVPR 2021): negatives that are trained against the encoder. Shapes: B images a rank, D embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adco import distributed
from adco.bank import Bank
from adco.config import Recipe
from adco.contrast import adversarial_contrast, make_pairs
from adco.encoder import Encoder, key_encoder_of, momentum_update


@dataclass(frozen=True)
class Step:
    """What `forward` leaves for the update: the encoder's loss, the bank's direction, and scalars to report."""

    loss: Tensor
    direction: Tensor
    scalars: dict[str, Tensor]


class AdCo(nn.Module):
    """The query encoder descends eq. (1), the bank ascends it, the key encoder follows the query encoder."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.contrast, self.key_momentum = recipe.contrast, recipe.encoder.key_momentum
        self.pairs = make_pairs(len(recipe.views), recipe.contrast.symmetric)
        encoder, bank = recipe.encoder, recipe.bank
        self.encoder = Encoder(encoder.arch, encoder.stem, encoder.dim, encoder.head_norm)
        self.key_encoder = key_encoder_of(self.encoder)
        self.bank = Bank(bank.size, encoder.dim, bank.sgd_momentum, bank.weight_decay, bank.renormalize)

    def forward(self, views: Sequence[Tensor]) -> Step:
        """views: V tensors (B, 3, S_v, S_v). The key encoder is updated before its forward pass, as released."""
        queries = {view: self.encoder(views[view]) for view in sorted({pair.query for pair in self.pairs})}
        momentum_update(self.key_encoder, self.encoder, self.key_momentum)
        keys = {view: self.key(views[view]) for view in sorted({pair.key for pair in self.pairs})}
        options = self.contrast
        result = adversarial_contrast(
            queries, keys, self.pairs, self.bank.rows, options.tau, options.tau_bank, options.in_batch_negatives
        )
        scalars = {"loss": result.loss.detach(), "accuracy": 100 * result.accuracy}
        return Step(result.loss, result.direction, scalars)

    def update(self, step: Step, bank_lr: float) -> None:
        """Move the bank by the direction found in the same forward pass."""
        self.bank.ascend(step.direction, bank_lr)

    @torch.no_grad()
    def key(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D) unit keys of the momentum encoder, without gradient."""
        return self.key_encoder(images)

    def fill(self, views: Sequence[Tensor], start: int) -> int:
        """`init: encode` - put the keys of the last view into the bank from row `start`; return the next free row."""
        return self.bank.fill(distributed.gather(self.key(views[-1])), start)

    def train_and_fill(self, views: Sequence[Tensor], start: int, optimizer: torch.optim.Optimizer) -> int:
        """`init: train_and_fill` - one SGD step on [positive, bank] at tau without in-batch negatives, then `fill`."""
        pair = replace(self.pairs[0], weight=1.0)
        queries = {pair.query: self.encoder(views[pair.query])}
        momentum_update(self.key_encoder, self.encoder, self.key_momentum)
        keys = {pair.key: self.key(views[pair.key])}
        tau = self.contrast.tau
        loss = adversarial_contrast(queries, keys, (pair,), self.bank.rows, tau, tau, in_batch_negatives=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return self.bank.fill(distributed.gather(keys[pair.key]), start)

    def restart_key_encoder(self) -> None:
        """Copy the query encoder's parameters into the key encoder (after filling the bank)."""
        momentum_update(self.key_encoder, self.encoder, 0.0)
