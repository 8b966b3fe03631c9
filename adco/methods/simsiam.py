"""SimSiam (Chen and He, CVPR 2021): a predictor and a stopped gradient, without negatives and without a key encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adco.config.schema import PretrainConfig
from adco.losses.pairs import make_pairs
from adco.methods.base import Method, StepOutput, TrainingProgress
from adco.models.encoder import Encoder, predictor


class SimSiam(Method):
    """Minus the cosine of one view's prediction p and the other's embedding z, the mean of both directions (eq. 4)."""

    def __init__(self, recipe: PretrainConfig):
        options = recipe.encoder
        encoder = Encoder(options, normalize=False, tail=WithPrediction(options.dim, options.predictor_width))
        super().__init__(recipe, encoder, make_pairs(2, symmetric=True))

    def compute_loss(
        self, outputs: Mapping[int, Tensor], targets: Mapping[int, Tensor], progress: TrainingProgress
    ) -> StepOutput:
        """Minus the cosines of predictions and embeddings."""
        halves = {view: output.chunk(2, dim=1) for view, output in outputs.items()}  # p and z, (B, D) each
        queries = {view: F.normalize(p, dim=1) for view, (p, _) in halves.items()}
        keys = {view: F.normalize(z.detach(), dim=1) for view, (_, z) in halves.items()}
        losses = [-pair.weight * (queries[pair.query] * keys[pair.key]).sum(dim=1).mean() for pair in self.pairs]
        loss = torch.stack(losses).sum()
        return StepOutput(loss, {"loss": loss.detach()}, queries[0].detach(), keys[1])


class WithPrediction(nn.Module):
    """Embeddings z (B, dim) -> (B, 2 dim): the predictor's p, then z itself."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.predictor = predictor(dim, hidden)

    def forward(self, z: Tensor) -> Tensor:
        """(B, dim) -> (B, 2 dim)."""
        return torch.cat([self.predictor(z), z], dim=1)
