"""Gradient accumulation: one optimiser step in several passes, with the memory of one pass."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn


def accumulated_step(trainer, passes: int) -> None:
    """One training step of a detectron2 SimpleTrainer or AMPTrainer, its batch divided into equal parts.

    detectron2's losses are means, so the mean of the parts' losses is the batch's loss: exactly for means over images
    or a fixed number of samples (proposals, box classification), approximately for means over foreground boxes (masks).

    Args:
        trainer: The trainer; its model, data loader, optimizer and, with mixed precision, grad_scaler are used. Has the
            effect of its `run_step`: parameters are updated, losses are written to the event storage.
        passes: Number of parts. The batch's length on this process must be a multiple of it.
    """
    started = time.perf_counter()
    images = next(trainer._data_loader_iter)
    data_time = time.perf_counter() - started
    scaler = getattr(trainer, "grad_scaler", None)
    trainer.optimizer.zero_grad()
    totals: dict[str, Tensor] = {}
    for number, part in enumerate(parts(images, passes), start=1):
        with _without_sync(trainer.model, number < passes):
            with torch.autocast("cuda") if scaler is not None else contextlib.nullcontext():
                losses: Mapping[str, Tensor] = trainer.model(part)
            loss = cast(Tensor, sum(losses.values())) / passes  # sum's type includes its start value, the int 0
            (loss if scaler is None else scaler.scale(loss)).backward()
        # mean over the parts, for the log
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value.detach() / passes
    trainer._write_metrics(totals, data_time)
    if scaler is None:
        trainer.optimizer.step()
    else:
        scaler.step(trainer.optimizer)
        scaler.update()


def parts(images: list, passes: int) -> Iterable[list]:
    """The list as `passes` consecutive parts of equal length."""
    length = len(images) // passes
    return (images[k * length : (k + 1) * length] for k in range(passes))


def _without_sync(model: nn.Module, wait: bool) -> contextlib.AbstractContextManager:
    """DistributedDataParallel's `no_sync` while `wait`, so that ranks exchange gradients only in the last pass."""
    no_sync = getattr(model, "no_sync", None)
    return no_sync() if wait and no_sync is not None else contextlib.nullcontext()
