"""SimCLR's objective (Chen et al., ICML 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from adco.utils import distributed


def nt_xent(first: Tensor, second: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Eq. (1), mean over both views of this rank's images; candidates are the views of all ranks but the row's own.

    first, second: (B, D) unit rows of two views, with gradient. Returns the loss and the share of rows (in [0, 1])
    whose other view has the largest logit, scalars.
    """
    rows = torch.cat([first, second])
    number = torch.arange(len(rows), device=rows.device)
    own = distributed.rank() * len(rows) + number
    logits = rows @ distributed.all_gather_with_gradient(rows).T / tau
    logits = logits.scatter(1, own.unsqueeze(1), -torch.inf)
    label = own - number + (number + len(first)) % len(rows)
    return F.cross_entropy(logits, label), (logits.argmax(dim=1) == label).float().mean()
