"""One optimiser step in several passes: the gradient of the mean over the batch, in the memory of a part of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def accumulated_step(trainer, passes: int) -> None:
    """`run_step` of a detectron2 SimpleTrainer or AMPTrainer, its batch split into `passes` equal parts.

    Losses are means over images, so that the mean of the parts' losses is the batch's: exactly where each image counts
    the same (proposals, box classification), nearly where a part's mean runs over its foreground (masks).
    """
    started = time.perf_counter()
    images = next(trainer._data_loader_iter)
    data_time = time.perf_counter() - started
    scaler = getattr(trainer, "grad_scaler", None)
    trainer.optimizer.zero_grad()
    totals: dict[str, Tensor] = {}
    for number, part in enumerate(parts(images, passes), start=1):
        with _unsynchronised(trainer.model, number < passes):
            with torch.autocast("cuda") if scaler is not None else contextlib.nullcontext():
                losses: Mapping[str, Tensor] = trainer.model(part)
            loss = sum(losses.values()) / passes
            (loss if scaler is None else scaler.scale(loss)).backward()
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value.detach() / passes
    trainer._write_metrics(totals, data_time)
    if scaler is None:
        trainer.optimizer.step()
    else:
        scaler.step(trainer.optimizer)
        scaler.update()


def parts(images: list, passes: int) -> Iterable[list]:
    """The list in `passes` consecutive parts of equal length."""
    length = len(images) // passes
    return (images[k * length : (k + 1) * length] for k in range(passes))


def _unsynchronised(model: nn.Module, wait: bool) -> contextlib.AbstractContextManager:
    """Ranks exchange gradients only in the last pass."""
    return model.no_sync() if wait and hasattr(model, "no_sync") else contextlib.nullcontext()
