"""SwAV (Caron et al., NeurIPS 2020): predict from one crop to which prototypes another crop is assigned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.config.schema import PretrainConfig
from adco.losses.pairs import LARGE_VIEWS, make_swav_pairs
from adco.losses.sinkhorn import sinkhorn
from adco.methods.base import Method, StepOutput, TrainingProgress
from adco.models.encoder import Encoder
from adco.utils import distributed
from adco.utils.errors import UserError


class SwAV(Method):
    """Swapped prediction (eq. 2), with assignments that share all ranks' crops evenly among the prototypes (eq. 3).

    Attributes:
        queue: (2, swap.queue, D) embeddings of past crops 0 and 1 of all ranks, the same on every rank. Once it is
            full it takes part in the assignments, for batches that are smaller than the number of prototypes.

    Raises:
        UserError: `swap.queue` is no multiple of the batch.
    """

    queue: Tensor

    def __init__(self, recipe: PretrainConfig):
        options, swap = recipe.encoder, recipe.swap
        if swap.queue % recipe.batch:
            raise UserError(f"recipe: swap.queue={swap.queue} is not a multiple of batch={recipe.batch}; make it one")
        super().__init__(
            recipe, Encoder(options, tail=Prototypes(options.dim, swap.prototypes)), make_swav_pairs(len(recipe.views))
        )
        self.dim, self.tau, self.swap = options.dim, recipe.contrast.tau, swap
        self.register_buffer("queue", torch.zeros(len(LARGE_VIEWS), swap.queue, options.dim))

    @property
    def prototypes(self) -> Prototypes:
        """The prototypes, which the encoder holds behind its head."""
        assert isinstance(self.encoder.tail, Prototypes)
        return self.encoder.tail

    def targets(self, parts: Sequence[Sequence[Tensor]], progress: TrainingProgress) -> dict[int, Tensor]:
        """None. Every step starts with prototypes of unit length, so that weight decay does not move frozen ones."""
        self.prototypes.normalize()
        return {}

    def compute_loss(
        self, outputs: Mapping[int, Tensor], targets: Mapping[int, Tensor], progress: TrainingProgress
    ) -> StepOutput:
        """The cross-entropy of predicted and assigned prototypes."""
        # the encoder returns embeddings (B, D) and beside them their cosines with the prototypes (B, prototypes)
        embeddings = {view: output[:, : self.dim] for view, output in outputs.items()}
        scores = {view: output[:, self.dim :] for view, output in outputs.items()}
        if progress.epoch < self.swap.frozen_epochs:  # the gradient reaches the embeddings, not the prototypes
            scores = {view: z @ self.prototypes.weight.detach().T for view, z in embeddings.items()}
        assigned = [self.assign(crop, scores[crop].detach(), progress) for crop in LARGE_VIEWS]
        losses = [
            pair.weight * F.cross_entropy(scores[pair.query] / self.tau, assigned[pair.key]) for pair in self.pairs
        ]
        loss = torch.stack(losses).sum()
        return StepOutput(loss, {"loss": loss.detach()}, embeddings[0].detach(), embeddings[1].detach())

    def update(self, step: StepOutput, progress: TrainingProgress, bank_lr: float) -> None:
        """The batch's embeddings replace the oldest of the queue."""
        if self.seen(progress) < 0 or not self.swap.queue:
            return
        newest = torch.stack([distributed.all_gather(step.queries), distributed.all_gather(step.keys)])
        start = self.seen(progress) * newest.shape[1] % self.swap.queue
        self.queue[:, start : start + newest.shape[1]] = newest

    def assign(self, crop: int, scores: Tensor, progress: TrainingProgress) -> Tensor:
        """The assignments of a crop.

        Args:
            crop: 0 or 1.
            scores: (B, prototypes) its cosines with the prototypes, without gradient.
            progress: Where the run is.

        Returns:
            (B, prototypes) soft assignments, whose rows sum to 1.
        """
        if self.swap.queue and self.seen(progress) * len(scores) * distributed.world_size() >= self.swap.queue:
            past = distributed.local_shard(self.queue[crop]) @ self.prototypes.weight.detach().T
            return sinkhorn(torch.cat([past, scores]), self.swap.epsilon, self.swap.rounds)[-len(scores) :]
        return sinkhorn(scores, self.swap.epsilon, self.swap.rounds)

    def seen(self, progress: TrainingProgress) -> int:
        """How many batches the queue has taken; negative before its first epoch."""
        return progress.step - self.swap.queue_from_epoch * progress.steps_per_epoch


class Prototypes(nn.Module):
    """Unit embeddings z (B, dim) -> (B, dim + count): z itself, then its cosines with `count` trained prototypes.

    Attributes:
        weight: (count, dim) prototypes.
    """

    def __init__(self, dim: int, count: int):
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, z: Tensor) -> Tensor:
        """(B, dim) unit embeddings -> (B, dim + count)."""
        return torch.cat([z, z @ self.weight.T], dim=1)

    @torch.no_grad()
    def normalize(self) -> None:
        """Scale the prototypes to unit length, after an optimizer's step."""
        self.weight.copy_(F.normalize(self.weight, dim=1))
