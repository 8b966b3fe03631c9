"""The backward pass of one step, in micro-batches with the loss of the whole batch (GradCache, Gao et al., 2021)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adco.methods.base import Method, StepOutput, TrainingProgress
from adco.models.batch_norm import frozen_statistics
from adco.utils import distributed


def split(views: Sequence[Tensor], parts: int) -> list[list[Tensor]]:
    """Cut the batch into micro-batches: V views (B, ...) -> `parts` lists of V views (B / parts, ...)."""
    return [list(part) for part in zip(*(view.chunk(parts) for view in views), strict=True)]


def backward(
    method: Method,
    network: nn.Module,
    parts: Sequence[Sequence[Tensor]],
    progress: TrainingProgress,
    scaler: torch.amp.GradScaler,
) -> StepOutput:
    """Compute the loss of the whole batch, and add its gradients to the encoder's, averaged over the ranks.

    With several micro-batches their outputs are computed without gradient, the loss is computed on the outputs of the
    whole batch, and each micro-batch is computed again to pass its outputs' gradients to the weights. This costs a
    second forward pass. The result equals that of one large batch whose BatchNorm statistics are those of each part.

    Args:
        method: The method.
        network: `method.encoder`, as `distributed.parallel` wraps it.
        parts: Micro-batches, each a list of all views (b, 3, S, S).
        progress: Where the run is.
        scaler: Scales the loss in fp16.

    Returns:
        The loss and what the method reports with it.
    """
    if "torch._inductor.cudagraph_trees" in sys.modules:  # else there are no graphs, and its import takes seconds
        torch.compiler.cudagraph_mark_step_begin()  # what graphs of the last step returned is no longer needed
    targets = method.targets(parts, progress)
    wanted = [[part[view] for view in method.query_views] for part in parts]
    if len(parts) == 1:
        step = method.compute_loss(dict(zip(method.query_views, network(wanted[0]), strict=True)), targets, progress)
        scaler.scale(step.loss).backward()
        return step
    with torch.no_grad(), frozen_statistics(method.encoder):
        pieces = [method.encoder(views) for views in wanted]
    whole = [torch.cat(outputs).requires_grad_() for outputs in zip(*pieces, strict=True)]
    step = method.compute_loss(dict(zip(method.query_views, whole, strict=True)), targets, progress)
    gradients = torch.autograd.grad(scaler.scale(step.loss), whole)
    for number, (views, shares) in enumerate(zip(wanted, split(gradients, len(parts)), strict=True)):
        with distributed.gradients_stay_here(network, number < len(parts) - 1):
            torch.autograd.backward(network(views), shares)
    return step
