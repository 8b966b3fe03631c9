"""Optimizers, parameter groups, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adco.config.schema import Optimizer as Options


def build_optimizer(options: Options, encoder: nn.Module, fused: bool) -> torch.optim.Optimizer:
    """SGD or LARS over the trained encoder; a group with `constant_lr` is left out of the schedule."""
    kind = torch.optim.SGD if options.kind == "sgd" else LARS
    extra = {"fused": fused} if options.kind == "sgd" else {"trust": options.trust}
    groups = parameter_groups(options, encoder)
    solver = kind(groups, lr=options.lr, momentum=options.sgd_momentum, weight_decay=options.weight_decay, **extra)
    if options.kind == "sgd" and options.sgd_momentum:  # torch's fused SGD leaves them unset where fp16 skips a step
        for parameter in encoder.parameters():
            solver.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return solver


def load_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a state dict, each parameter's buffers into memory laid out as the parameter itself.

    torch keeps the strides that were saved, and fused kernels walk over the raw memory of weights and buffers alike: a
    run that was saved channels last and goes on contiguous, or the other way round, would mix its weights up.
    """
    optimizer.load_state_dict(state)
    for parameter, buffers in optimizer.state.items():
        for name, buffer in buffers.items():
            if isinstance(buffer, Tensor) and buffer.shape == parameter.shape:
                buffers[name] = torch.empty_like(parameter, dtype=buffer.dtype).copy_(buffer)


def parameter_groups(options: Options, encoder: nn.Module) -> list[dict]:
    """Weights, and apart from them what is not decayed (biases, norms) and what keeps its learning rate (predictor)."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in encoder.named_parameters():
        decayed = parameter.ndim > 1 or (options.weight_decay_all and options.kind == "sgd")
        constant = options.constant_predictor_lr and name.startswith("tail.")
        groups.setdefault((decayed, constant), []).append(parameter)
    plain = {True: {}, False: {"weight_decay": 0.0, "trust": 0.0}}
    return [
        {"params": found, "constant_lr": constant, **plain[decayed]} for (decayed, constant), found in groups.items()
    ]


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


def cosine(
    step: int,
    steps_per_epoch: int,
    epochs: int,
    lr: float,
    final_lr: float,
    warmup_epochs: float = 0.0,
    by: str = "epoch",
) -> float:
    """The learning rate of `step` (0-based): linear from 0 over the warm-up, then half a cosine from lr to final_lr.

    by `epoch`: constant within an epoch, as the released code; by `step`: it moves at every step.
    """
    position, share = _position(step, steps_per_epoch, warmup_epochs, by)
    if share is not None:
        return lr * share
    share = (position - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)  # a run may be all warm-up
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * share))


def constant(step: int, steps_per_epoch: int, lr: float, warmup_epochs: float = 0.0, by: str = "epoch", **_) -> float:
    """The same learning rate after a linear warm-up; takes what `cosine` takes."""
    _, share = _position(step, steps_per_epoch, warmup_epochs, by)
    return lr if share is None else lr * share


def _position(step: int, steps_per_epoch: int, warmup_epochs: float, by: str) -> tuple[float, float | None]:
    """Where a step is in epochs, and its share of the warm-up, None after it."""
    position = step / steps_per_epoch if by == "step" else float(step // steps_per_epoch)
    done = position + (1 / steps_per_epoch if by == "step" else 1)
    return position, done / warmup_epochs if position < warmup_epochs else None
