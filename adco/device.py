"""Which device a tool runs on: `auto`, `cpu`, `cuda` or `cuda:INDEX`."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from adco.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The device called `name`; `auto` is the current GPU when there is one, else the CPU.

    Raises UserError for an unknown name, and for a GPU that this machine (or this build of torch) does not have: asking
    for `cuda` never falls back to the CPU.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device {name!r} is not known; choose auto, cpu, cuda or cuda:INDEX")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not count:
        reason = "no GPU is visible" if torch.version.cuda else "this build of torch has no CUDA"
        raise UserError(f"device {name!r} was asked for, but {reason}; use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"device {name!r} was asked for, but only {count} GPU(s) are visible, numbered from 0")
    return device


def has_half_precision(device: torch.device) -> bool:
    """Whether bf16 is faster than float32 there: on GPUs, and on CPUs that have instructions for it (Linux)."""
    if device.type != "cpu":
        return True
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags.read_text()))
