"""SimCLR (Chen et al., ICML 2020): the other view of an image is found among all views of all images of the batch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adco.config.schema import PretrainConfig
from adco.losses.nt_xent import nt_xent
from adco.losses.pairs import make_pairs
from adco.methods.base import Method, StepOutput, TrainingProgress
from adco.models.encoder import Encoder


class SimCLR(Method):
    """NT-Xent over the views of all ranks. Gradients reach both views; there is no key encoder."""

    def __init__(self, recipe: PretrainConfig):
        super().__init__(recipe, Encoder(recipe.encoder), make_pairs(2, symmetric=True))
        self.tau = recipe.contrast.tau

    def compute_loss(
        self, outputs: Mapping[int, Tensor], targets: Mapping[int, Tensor], progress: TrainingProgress
    ) -> StepOutput:
        """NT-Xent of the two views."""
        loss, accuracy = nt_xent(outputs[0], outputs[1], self.tau)
        scalars = {"loss": loss.detach(), "accuracy": 100 * accuracy}
        return StepOutput(loss, scalars, outputs[0].detach(), outputs[1].detach())
