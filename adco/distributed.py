"""Ranks and what they exchange; the identity on one process. The only file that names torch.distributed."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """This process's number among all ranks, 0 on one process."""
    return dist.get_rank() if _running() else 0


def ranks() -> int:
    """How many processes train together, 1 on one process."""
    return dist.get_world_size() if _running() else 1


def gather(rows: Tensor) -> Tensor:
    """(N, D) on each rank -> (ranks * N, D), rank 0's rows first. Carries no gradient: for keys only."""
    if not _running():
        return rows
    parts = [torch.empty_like(rows) for _ in range(ranks())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def mean(tensor: Tensor) -> Tensor:
    """The mean over the ranks, equal on every rank."""
    if not _running():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total / ranks()


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
