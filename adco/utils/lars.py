"""LARS (You et al., 2017)."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose gradient is scaled by trust * |w| / |g + weight_decay * w|, for each tensor.

    As in the released code of BYOL's and MoCo v3's users.

    Args:
        params: Parameters, or groups of them with options of their own.
        lr, momentum, weight_decay: Those of SGD.
        trust: Trust coefficient. A group with 0 (biases, norms) takes plain SGD steps.
    """

    def __init__(self, params: ParamsT, lr: float, momentum: float, weight_decay: float, trust: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """v <- momentum * v + scale * (g + weight_decay * w); w <- w - lr * v. A closure is not supported."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            steps = torch._foreach_add([p.grad for p in weights], weights, alpha=group["weight_decay"])
            if group["trust"]:  # scale to trust * |w| / |g + weight_decay * w|, 1 where a norm is zero
                sizes, lengths = torch._foreach_norm(weights), torch._foreach_norm(steps)
                scales = [
                    torch.where((w > 0) & (g > 0), group["trust"] * w / g, 1.0)
                    for w, g in zip(sizes, lengths, strict=True)
                ]
                torch._foreach_mul_(steps, scales)
            velocities = [self.state[p].setdefault("velocity", torch.zeros_like(p)) for p in weights]
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, steps)
            torch._foreach_add_(weights, velocities, alpha=-group["lr"])
