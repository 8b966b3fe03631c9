"""SimCLR (Chen et al., ICML 2020): the other view of an image is found among all views of all images of the batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from adco.config.schema import Recipe
from adco.losses.bank_softmax import make_pairs
from adco.methods.base import Method, Moment, Step
from adco.models.encoder import Encoder
from adco.utils import distributed


class SimCLR(Method):
    """NT-Xent over the views of all ranks; gradients reach both views, there is no key encoder."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe, Encoder(recipe.encoder), make_pairs(2, symmetric=True))
        self.tau = recipe.contrast.tau

    def objective(self, outputs: Mapping[int, Tensor], targets: Mapping[int, Tensor], moment: Moment) -> Step:
        loss, accuracy = nt_xent(outputs[0], outputs[1], self.tau)
        scalars = {"loss": loss.detach(), "accuracy": 100 * accuracy}
        return Step(loss, scalars, outputs[0].detach(), outputs[1].detach())


def nt_xent(first: Tensor, second: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Eq. (1), mean over both views of this rank's images; candidates are the views of all ranks but the row's own.

    first, second: (B, D) unit rows of two views, with gradient. Returns the loss and the share of rows (in [0, 1])
    whose other view has the largest logit, scalars.
    """
    rows = torch.cat([first, second])
    number = torch.arange(len(rows), device=rows.device)
    own = distributed.rank() * len(rows) + number
    logits = rows @ distributed.gather_with_gradient(rows).T / tau
    logits = logits.scatter(1, own.unsqueeze(1), -torch.inf)
    label = own - number + (number + len(first)) % len(rows)
    return F.cross_entropy(logits, label), (logits.argmax(dim=1) == label).float().mean()
