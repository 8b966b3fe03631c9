"""BatchNorm whose statistics are of a part of the batch, or of all ranks' batches: what N GPUs see, on any number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from adco.utils import distributed
from adco.utils.device import constant

M = TypeVar("M", bound=nn.Module)


class SplitBatchNorm(_BatchNorm):
    """BatchNorm over each of `splits` equal parts of the batch by itself, as that many ranks compute it.

    The running statistics move by the mean over the parts. The output, and the gradient of the input, keep the input's
    memory format. The same idea is in MoCo's CIFAR-10 demo.

    Attributes:
        splits: Number of parts. Part p of B images is rows [p * B / splits, (p + 1) * B / splits).
    """

    splits: int = 1
    momentum: float
    num_batches_tracked: Tensor

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape.

        Raises:
            ValueError: In training, B is no multiple of `splits`.
        """
        if not self.training or self.splits == 1:
            return super().forward(x)
        if len(x) % self.splits:
            raise ValueError(f"a batch of {len(x)} images does not divide into encoder.norm_splits={self.splits} parts")
        running, affine = (self.running_mean, self.running_var), (self.weight, self.bias)
        outputs = [  # each part is contiguous in the input's memory format, so that nothing is permuted
            F.batch_norm(part, *running, *affine, training=True, momentum=momentum, eps=self.eps)
            for part, momentum in zip(x.chunk(self.splits), part_momenta(self.momentum, self.splits), strict=True)
        ]
        self.num_batches_tracked.add_(1)
        return torch.cat(outputs)


def part_momenta(momentum: float, parts: int) -> list[float]:
    """The momenta of `parts` updates in turn that together are one update with `momentum` towards the parts' mean.

    Update p is r <- (1 - m_p) r + m_p s_p, of the running statistic r towards the statistic s_p of part p.
    """
    return [momentum / (parts - later * momentum) for later in reversed(range(parts))]


class SyncedBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all ranks, which are equally large. The host does not wait for the GPU.

    The ranks exchange two numbers a channel in the forward pass and two in the backward pass. As with
    nn.SyncBatchNorm, the gradient of the input is that of all ranks' losses, summed, and the gradients of weight and
    bias are those of this rank's. torch.compile is refused with it, as it has no graph for the exchange.
    """

    momentum: float
    num_batches_tracked: Tensor

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) of this rank -> the same shape; in training a collective call."""
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        return _Synced.apply(x, self.weight, self.bias, self.running_mean, self.running_var, self.momentum, self.eps)


class _Synced(torch.autograd.Function):
    """torch.nn.modules._functions.SyncBatchNorm for equal counts: without its mask, the host does not wait."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        kernels, ranks, channels = KERNELS[x.device.type], distributed.world_size(), x.shape[1]
        x = x.contiguous(memory_format=_memory_format(x))
        own = torch.stack(kernels.batch_norm_stats(x, eps))
        means, invstds = distributed.all_gather(own).view(ranks, 2, channels).unbind(dim=1)
        ctx.counts = (x.numel() // channels,) * ranks
        counts = constant(ctx.counts, x.device, running_mean.dtype)
        mean, invstd = kernels.batch_norm_gather_stats_with_counts(
            x, means, invstds, running_mean, running_var, momentum, eps, counts
        )
        ctx.save_for_backward(x, weight, mean, invstd)
        return kernels.batch_norm_elemt(x, weight, bias, mean, invstd, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, invstd = ctx.saved_tensors
        kernels, of_x = KERNELS[x.device.type], None
        gradient = gradient.contiguous(memory_format=_memory_format(x))
        *sums, of_weight, of_bias = kernels.batch_norm_backward_reduce(
            gradient, x, mean, invstd, weight, *ctx.needs_input_grad[:3]
        )
        if ctx.needs_input_grad[0]:
            sums = distributed.all_reduce_sum(torch.stack(sums)).unbind()
            counts = constant(ctx.counts, x.device, torch.int32)
            of_x = kernels.batch_norm_backward_elemt(gradient, x, mean, invstd, weight, *sums, counts)
        of_affine = (None, None) if weight is None else (of_weight, of_bias)
        return of_x, *of_affine, None, None, None, None


def _memory_format(x: Tensor) -> torch.memory_format:
    """What an output of x's memory format is asked for as: channels_last where x lies so, else contiguous."""
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(N, C, ...) -> mean and 1 / sqrt(variance + eps), each (C,) and float32 at least."""
    mean, var = torch.batch_norm_update_stats(_precise(x), None, None, 0.0)
    return mean, (var + eps).rsqrt()


def _gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    invstds: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """The statistics of R parts, (R, C), of counts (R,) values a channel -> those of the whole, (C,), towards which the
    running statistics move in place, with the unbiased variance."""
    count, shares = counts.sum(), (counts / counts.sum()).unsqueeze(1)
    mean = (shares * means).sum(dim=0)
    var = (shares * (invstds**-2 - eps + (means - mean) ** 2)).sum(dim=0)
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(var * count / (count - 1), momentum)
    return mean, (var + eps).rsqrt()


def _elemt(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    """(x - mean) * invstd * weight + bias, in x's dtype. eps: already in invstd."""
    scale = invstd if weight is None else invstd * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x)).to(x.dtype)


def _backward_reduce(
    gradient: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, *wanted: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of this rank over a channel, (C,): of the output's gradient, of that times (x - mean), and the gradients of
    weight and bias."""
    _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
        _precise(gradient), _precise(x), None, None, None, mean, invstd, True, 0.0, [False, True, True]
    )
    return of_bias, of_weight / invstd, of_weight, of_bias


def _backward_elemt(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    sum_dy: Tensor,
    sum_dy_xmu: Tensor,
    counts: Tensor,
) -> Tensor:
    """The gradient of x from that of the output, given the sums over all ranks and their counts (R,)."""
    scale, count = invstd if weight is None else invstd * weight, counts.sum()
    slope, shift = -sum_dy_xmu / count * invstd**2, -sum_dy / count * scale
    centred = torch.addcmul(gradient, x - _per_channel(mean, x), _per_channel(slope, x))
    return torch.addcmul(_per_channel(shift, x), centred, _per_channel(scale, x)).to(x.dtype)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    """(C,) -> (1, C, 1, ...), as many dimensions as x."""
    return values.view(1, -1, *[1] * (x.dim() - 2))


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# torch has these five for GPUs alone; here they are, with the same arguments and meaning, for the CPU
ON_CPU = SimpleNamespace(
    batch_norm_stats=_stats,
    batch_norm_gather_stats_with_counts=_gather_stats_with_counts,
    batch_norm_elemt=_elemt,
    batch_norm_backward_reduce=_backward_reduce,
    batch_norm_backward_elemt=_backward_elemt,
)
KERNELS = {"cuda": torch, "cpu": ON_CPU}


def replace_norms(module: M, sync: bool, splits: int) -> M:
    """Turn every BatchNorm of a module into SyncedBatchNorm or SplitBatchNorm, in place; returns the module.

    Parameters and buffers, and with them the state dict, stay as they are.
    """
    for norm in [m for m in module.modules() if isinstance(m, _BatchNorm)]:
        norm.__class__ = SyncedBatchNorm if sync else SplitBatchNorm
        if isinstance(norm, SplitBatchNorm):
            norm.splits = splits
    return module


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Forward passes inside, without gradient, normalise as in training and leave the running statistics as they were.

    The statistics are saved and restored. A momentum of 0 would leave them, too, but torch.compile makes a number that
    changes an input of its graphs, which is copied to the GPU for each call.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    buffers = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
    kinds = [[b for b in buffers if b.is_floating_point() is floating] for floating in (True, False)]
    pairs = [(kind, [torch.empty_like(b) for b in kind]) for kind in kinds if kind]  # one dtype a list, for one kernel
    for kind, saved in pairs:
        torch._foreach_copy_(saved, kind)
    try:
        yield
    finally:
        for kind, saved in pairs:
            torch._foreach_copy_(kind, saved)
