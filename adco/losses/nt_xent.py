"""NT-Xent, SimCLR's objective (Chen et al., ICML 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from adco.utils import distributed


def nt_xent(first: Tensor, second: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Eq. (1): the other view of an image is found among the views of all images of all ranks.

    Args:
        first: (B, D) unit embeddings of one view, with gradient.
        second: (B, D) unit embeddings of the other view of the same images, with gradient.
        tau: Temperature, above 0.

    Returns:
        The loss, the mean over this rank's 2B embeddings, and the share in [0, 1] of them whose other view has the
        largest logit. Both are scalars.
    """
    z = torch.cat([first, second])  # (2B, D)
    index = torch.arange(len(z), device=z.device)
    own_column = distributed.rank() * len(z) + index
    logits = z @ distributed.all_gather_with_gradient(z).T / tau  # (2B, ranks * 2B)
    logits = logits.scatter(1, own_column.unsqueeze(1), -torch.inf)  # no embedding is compared with itself
    label = own_column - index + (index + len(first)) % len(z)
    return F.cross_entropy(logits, label), (logits.argmax(dim=1) == label).float().mean()
