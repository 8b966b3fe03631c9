"""LARS (You et al., 2017)."""

from __future__ import annotations

import torch


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is, for each tensor, scaled to trust * |w| / |g + wd w| (You et al., 2017).

    A group with trust 0 (biases, norms) takes plain SGD steps. As in the released code of BYOL's and MoCo v3's users.
    """

    def __init__(self, params, lr: float, momentum: float, weight_decay: float, trust: float):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """v <- m v + scale (g + wd w); w <- w - lr v."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            steps = torch._foreach_add([p.grad for p in weights], weights, alpha=group["weight_decay"])
            if group["trust"]:
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
