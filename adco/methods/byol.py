"""BYOL (Grill et al., NeurIPS 2020): a predictor maps one view's embedding to the key encoder's of the other view."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from adco.config.schema import PretrainConfig
from adco.losses.pairs import Pair
from adco.methods.base import MomentumMethod, StepOutput, TrainingProgress
from adco.models.encoder import Encoder, predictor


class BYOL(MomentumMethod):
    """The squared distance of unit embeddings, 2 - 2 cos, both directions added (eqs. 2 and 3); no negatives."""

    def __init__(self, recipe: PretrainConfig):
        options = recipe.encoder
        encoder = Encoder(options, normalize=False, tail=predictor(options.dim, options.predictor_width))
        super().__init__(recipe, encoder, (Pair(0, 1, 1.0), Pair(1, 0, 1.0)))

    def compute_loss(
        self, outputs: Mapping[int, Tensor], targets: Mapping[int, Tensor], progress: TrainingProgress
    ) -> StepOutput:
        """The distances of predictions and keys."""
        queries = {view: F.normalize(p, dim=1) for view, p in outputs.items()}
        keys = {view: F.normalize(z, dim=1) for view, z in targets.items()}
        distances = [(queries[pair.query] - keys[pair.key]).square().sum(dim=1).mean() for pair in self.pairs]
        loss = torch.stack(distances).sum()
        return StepOutput(loss, {"loss": loss.detach()}, queries[0].detach(), keys[1])
