"""The adversaries: K raw rows that ascend the loss which the encoder descends, with their own SGD."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bank(nn.Module):
    """rows: (K, D) raw adversaries W; velocity: (K, D) momentum buffer v of their SGD. Neither is an nn.Parameter.

    renormalize: bring rows back to unit length after each step (paper); otherwise they drift (released code).
    """

    def __init__(self, size: int, dim: int, sgd_momentum: float, weight_decay: float, renormalize: bool):
        super().__init__()
        self.sgd_momentum, self.weight_decay, self.renormalize = sgd_momentum, weight_decay, renormalize
        self.register_buffer("rows", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("velocity", torch.zeros(size, dim))

    @torch.no_grad()
    def fill(self, keys: Tensor, start: int) -> int:
        """Write (M, D) keys into rows from `start`, as many as fit; return the row after the last one written."""
        stop = min(start + keys.shape[0], self.rows.shape[0])
        self.rows[start:stop] = keys[: stop - start]
        return stop

    @torch.no_grad()
    def ascend(self, direction: Tensor, lr: float) -> None:
        """One SGD step up `direction` (K, D): v <- m v - direction + wd W; W <- W - lr v."""
        self.velocity.mul_(self.sgd_momentum).add_(self.rows, alpha=self.weight_decay).sub_(direction)
        self.rows.sub_(self.velocity, alpha=lr)
        if self.renormalize:
            self.rows.copy_(F.normalize(self.rows, dim=1))
