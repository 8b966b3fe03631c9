"""SwAV (Caron et al., NeurIPS 2020): predict from one crop to which prototypes another crop is assigned."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.config.schema import PretrainConfig
from adco.losses.pairs import Pair
from adco.losses.sinkhorn import sinkhorn
from adco.methods.base import Method, StepOutput, TrainingProgress
from adco.models.encoder import Encoder
from adco.utils import distributed
from adco.utils.errors import UserError

ASSIGNING = (0, 1)  # the crops whose assignments all other crops predict


class SwAV(Method):
    """Swapped prediction (eq. 2), with assignments that share all ranks' crops evenly among the prototypes (eq. 3).

    queue: (2, swap.queue, D) the embeddings of past crops 0 and 1 of all ranks, a part of the assignments once it is
    full: for batches smaller than the number of prototypes. The same on every rank.
    """

    def __init__(self, recipe: PretrainConfig):
        options, swap = recipe.encoder, recipe.swap
        if swap.queue % recipe.batch:
            raise UserError(f"recipe: swap.queue={swap.queue} is not a multiple of batch={recipe.batch}; make it one")
        super().__init__(
            recipe, Encoder(options, tail=Prototypes(options.dim, swap.prototypes)), make_pairs(len(recipe.views))
        )
        self.dim, self.tau, self.swap = options.dim, recipe.contrast.tau, swap
        self.register_buffer("queue", torch.zeros(len(ASSIGNING), swap.queue, options.dim))

    def targets(self, parts, moment: TrainingProgress) -> dict[int, Tensor]:
        """None; but every step starts with prototypes of unit length, so that weight decay cannot move frozen ones."""
        self.encoder.tail.normalize()
        return {}

    def compute_loss(
        self, outputs: Mapping[int, Tensor], targets: Mapping[int, Tensor], moment: TrainingProgress
    ) -> StepOutput:
        rows = {view: whole[:, : self.dim] for view, whole in outputs.items()}
        scores = {view: whole[:, self.dim :] for view, whole in outputs.items()}
        if moment.epoch < self.swap.frozen_epochs:  # the gradient flows to the rows alone, none to the prototypes
            scores = {view: z @ self.encoder.tail.weight.detach().T for view, z in rows.items()}
        assigned = [self.assign(crop, scores[crop].detach(), moment) for crop in ASSIGNING]
        losses = [
            pair.weight * F.cross_entropy(scores[pair.query] / self.tau, assigned[pair.key]) for pair in self.pairs
        ]
        loss = torch.stack(losses).sum()
        return StepOutput(loss, {"loss": loss.detach()}, rows[0].detach(), rows[1].detach())

    def update(self, step: StepOutput, moment: TrainingProgress, bank_lr: float) -> None:
        """The batch's embeddings take the places of the oldest in the queue."""
        if self.seen(moment) < 0 or not self.swap.queue:
            return
        rows = torch.stack([distributed.all_gather(step.queries), distributed.all_gather(step.keys)])
        start = self.seen(moment) * rows.shape[1] % self.swap.queue
        self.queue[:, start : start + rows.shape[1]] = rows

    def assign(self, crop: int, scores: Tensor, moment: TrainingProgress) -> Tensor:
        """(B, prototypes) cosines of a crop -> (B, prototypes) soft assignments, whose rows sum to 1."""
        if self.swap.queue and self.seen(moment) * len(scores) * distributed.world_size() >= self.swap.queue:
            past = distributed.local_shard(self.queue[crop]) @ self.encoder.tail.weight.detach().T
            return sinkhorn(torch.cat([past, scores]), self.swap.epsilon, self.swap.rounds)[-len(scores) :]
        return sinkhorn(scores, self.swap.epsilon, self.swap.rounds)

    def seen(self, moment: TrainingProgress) -> int:
        """How many batches the queue has taken; below 0 before its first epoch."""
        return moment.step - self.swap.queue_from_epoch * moment.steps_per_epoch


class Prototypes(nn.Module):
    """Unit embeddings z (B, dim) -> (B, dim + count): z itself, then its cosines with the prototypes."""

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, z @ self.weight.T], dim=1)

    @torch.no_grad()
    def normalize(self) -> None:
        """Unit rows again, after an optimizer's step."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


def make_pairs(views: int) -> tuple[Pair, ...]:
    """Every other crop predicts the assignments of crops 0 and 1; the mean of all these losses."""
    return tuple(
        Pair(query, key, 1 / (len(ASSIGNING) * (views - 1)))
        for key in ASSIGNING
        for query in range(views)
        if query != key
    )
