"""One step's backward pass, in micro-batches that together mean the whole batch (as GradCache, Gao et al., 2021)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adco.methods.base import Method, StepOutput, TrainingProgress
from adco.models.batch_norm import frozen_statistics
from adco.utils import distributed


def split(views: Sequence[Tensor], parts: int) -> list[list[Tensor]]:
    """V views of B images -> `parts` micro-batches of V views of B / parts images."""
    return [list(part) for part in zip(*(view.chunk(parts) for view in views), strict=True)]


def backward(
    method: Method,
    network: nn.Module,
    parts: Sequence[Sequence[Tensor]],
    moment: TrainingProgress,
    scaler: torch.amp.GradScaler,
) -> StepOutput:
    """Gradients of the objective over all micro-batches, averaged over the ranks. network: method.encoder, in parallel.

    Several parts: their rows are computed without gradient, the objective is played on the rows of the whole batch, and
    each part is computed again to carry its rows' gradients to the weights. That costs a second forward pass, and
    equals one large batch whose BatchNorm statistics are of 1 / parts of it, as on that many ranks.
    """
    if "torch._inductor.cudagraph_trees" in sys.modules:  # else there are no graphs, and its import takes seconds
        torch.compiler.cudagraph_mark_step_begin()  # what graphs of the last step returned is no longer needed
    targets = method.targets(parts, moment)
    wanted = [[part[view] for view in method.query_views] for part in parts]
    if len(parts) == 1:
        step = method.compute_loss(dict(zip(method.query_views, network(wanted[0]), strict=True)), targets, moment)
        scaler.scale(step.loss).backward()
        return step
    with torch.no_grad(), frozen_statistics(method.encoder):
        pieces = [method.encoder(views) for views in wanted]
    whole = [torch.cat(rows).requires_grad_() for rows in zip(*pieces, strict=True)]
    step = method.compute_loss(dict(zip(method.query_views, whole, strict=True)), targets, moment)
    gradients = torch.autograd.grad(scaler.scale(step.loss), whole)
    for number, (views, shares) in enumerate(zip(wanted, split(gradients, len(parts)), strict=True)):
        with distributed.gradients_stay_here(network, number < len(parts) - 1):
            torch.autograd.backward(network(views), shares)
    return step
