"""BatchNorm whose statistics are of a part of the batch, or of all ranks' batches: what N GPUs see, on any number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from adco import distributed


class SplitBatchNorm(_BatchNorm):
    """BatchNorm over each of `splits` equal parts of the batch by itself, as that many ranks compute it (MoCo's demo).

    The running statistics move by the mean over the parts.
    """

    splits = 1

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.splits == 1:
            return super().forward(x)
        parts, (rows, channels, *place) = self.splits, x.shape
        if rows % parts:
            raise ValueError(f"a batch of {rows} images does not divide into encoder.norm_splits={parts} parts")
        wide = x.reshape(parts, rows // parts, channels, *place).transpose(0, 1).reshape(rows // parts, -1, *place)
        affine = (t.repeat(parts) if t is not None else None for t in (self.weight, self.bias))
        running = self.running_mean.repeat(parts), self.running_var.repeat(parts)
        out = F.batch_norm(wide, *running, *affine, training=True, momentum=self.momentum, eps=self.eps)
        for own, found in zip((self.running_mean, self.running_var), running, strict=True):
            own.copy_(found.view(parts, channels).mean(dim=0))
        self.num_batches_tracked.add_(1)
        return out.reshape(rows // parts, parts, channels, *place).transpose(0, 1).reshape(x.shape)


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all ranks, on the CPU; on GPUs torch's own SyncBatchNorm does it, faster."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.ranks() == 1:
            return super().forward(x)
        dims, count = [d for d in range(x.dim()) if d != 1], x.numel() // x.shape[1] * distributed.ranks()
        mean = distributed.total_with_gradient(x.sum(dims)) / count
        shape = [1, -1] + [1] * (x.dim() - 2)
        centred = x - mean.view(shape)
        var = distributed.total_with_gradient(centred.square().sum(dims)) / count
        with torch.no_grad():
            for own, found in ((self.running_mean, mean), (self.running_var, var * count / (count - 1))):
                own.lerp_(found.to(own.dtype), self.momentum)
            self.num_batches_tracked.add_(1)
        out = centred * (var + self.eps).rsqrt().view(shape)
        return out if self.weight is None else out * self.weight.view(shape) + self.bias.view(shape)


def replace_norms(module: nn.Module, sync: bool, splits: int) -> nn.Module:
    """Turn every BatchNorm below `module` into the kind that is asked for, its parameters and buffers untouched."""
    synced = nn.SyncBatchNorm if distributed.on_gpus() else SyncedBatchNorm
    for norm in [m for m in module.modules() if isinstance(m, _BatchNorm)]:
        norm.__class__ = synced if sync else SplitBatchNorm
        norm.process_group, norm.splits = None, splits
    return module


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Forward passes inside leave the running statistics as they are, and normalise as in training."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
