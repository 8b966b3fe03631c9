"""Optimizers, parameter groups, and learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adco.config.schema import OptimizerConfig as Options
from adco.utils.lars import LARS


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
