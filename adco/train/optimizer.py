"""The encoder's optimizer and its parameter groups. Learning-rate schedules are in adco/utils/schedules.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adco.config.schema import OptimizerConfig
from adco.utils.lars import LARS


def build_optimizer(options: OptimizerConfig, encoder: nn.Module, fused: bool) -> torch.optim.Optimizer:
    """SGD or LARS over the trained encoder's parameters.

    Args:
        options: Kind, learning rate, momentum and weight decay.
        encoder: The trained encoder.
        fused: Whether SGD uses torch's fused kernels.

    Returns:
        An optimizer whose groups have the key `constant_lr`: whether the group is left out of the schedule.
    """
    groups = parameter_groups(options, encoder)
    if options.kind == "lars":
        return LARS(groups, options.lr, options.sgd_momentum, options.weight_decay, options.trust)
    sgd = torch.optim.SGD(groups, options.lr, options.sgd_momentum, weight_decay=options.weight_decay, fused=fused)
    if options.sgd_momentum:  # torch's fused SGD leaves them unset where fp16 skips a step
        for parameter in encoder.parameters():
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def load_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load a state dict, each parameter's buffers into memory laid out as the parameter itself.

    torch keeps the strides that were saved, and fused kernels read the raw memory of weights and buffers in one order.
    Without this, a run that was saved channels last and is resumed contiguous, or the other way round, would mix up its
    weights.
    """
    optimizer.load_state_dict(state)
    for parameter, buffers in optimizer.state.items():
        for name, buffer in buffers.items():
            if isinstance(buffer, Tensor) and buffer.shape == parameter.shape:
                buffers[name] = torch.empty_like(parameter, dtype=buffer.dtype).copy_(buffer)


def parameter_groups(options: OptimizerConfig, encoder: nn.Module) -> list[dict]:
    """Parameter groups: weights; biases and norms, not decayed; a predictor whose learning rate is constant."""
    groups: dict[tuple[bool, bool], list] = {}
    for name, parameter in encoder.named_parameters():
        decayed = parameter.ndim > 1 or (options.weight_decay_all and options.kind == "sgd")
        constant = options.constant_predictor_lr and name.startswith("tail.")
        groups.setdefault((decayed, constant), []).append(parameter)
    plain = {True: {}, False: {"weight_decay": 0.0, "trust": 0.0}}
    return [
        {"params": members, "constant_lr": constant, **plain[decayed]}
        for (decayed, constant), members in groups.items()
    ]
