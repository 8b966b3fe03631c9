"""The device of a tool (`auto`, `cpu`, `cuda` or `cuda:INDEX`), its precision, its cores, and copies to it."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from adco.utils.errors import UserError

MOST_WORKERS_ON_CPU = 8  # the network needs the cores, too


def resolve_device(name: str) -> torch.device:
    """The device of this name. A GPU that is named by its index becomes the current one, which events, pinned memory
    and the measurement of peak memory refer to.

    Args:
        name: `cpu`, `cuda`, `cuda:INDEX`, or `auto`: the current GPU if there is one, else the CPU.

    Raises:
        UserError: The name is not known, or this machine or this build of torch has no such GPU. `cuda` never falls
            back to the CPU.
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
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def has_half_precision(device: torch.device) -> bool:
    """Whether bf16 is faster than float32 on the device: on GPUs, and on CPUs with instructions for it (Linux)."""
    if device.type != "cpu":
        return True
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags.read_text()))


def set_arithmetic(device: torch.device, precision: str = "float32") -> None:
    """Set torch's switches for TF32 and cuDNN in this process.

    torch's default lets cuDNN's convolutions round their float32 inputs to TF32 (10 bits of mantissa); here only
    `tf32` does. Matrix products are always float32, because losses and banks use them. On a GPU, cuDNN also times its
    algorithms for each new shape and keeps the fastest.

    Args:
        device: Where the process computes.
        precision: `float32`, `tf32`, `bf16` or `fp16`.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = device.type == "cuda"


def usable_cores() -> int:
    """Number of cores that this process may use, by its affinity and the container's limit of CPU time (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return cores


def resolve_workers(workers: int | str, device: torch.device) -> int:
    """The number of threads that read images for a rank.

    Args:
        workers: The number, or `auto`: all of the rank's cores but one, on a CPU at most 8; at least 1. The ranks that
            torchrun starts on a machine share its cores; a task of SLURM has as many as it requested.
        device: Where the rank trains.
    """
    if workers != "auto":
        return int(workers)
    cores, ranks = usable_cores(), os.environ.get("LOCAL_WORLD_SIZE")
    cores = cores // int(ranks) if ranks else min(cores, int(os.environ.get("SLURM_CPUS_PER_TASK", cores)))
    return max(1, cores - 1 if device.type == "cuda" else min(cores - 1, MOST_WORKERS_ON_CPU))


@functools.cache
def constant(values: Sequence[float], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A constant tensor, cached, because a copy to a GPU would wait for all of the GPU's work. Must not be changed.

    Args:
        values: A tuple of N numbers.

    Returns:
        (N,) on the device.
    """
    with torch.inference_mode(False):  # a later call may be in training
        return torch.tensor(values, dtype=dtype, device=device)


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device of a tensor on the CPU. The copy to a GPU is from pinned memory and asynchronous."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def parse_workers(text: str) -> int | str:
    """The value of `--workers`: `auto` (see `resolve_workers`) or a number of threads. Raises UserError."""
    if text != "auto" and not (text.isascii() and text.isdigit()):
        raise UserError(f"--workers {text}: expected auto or a number of threads, at least 0")
    return text if text == "auto" else int(text)
