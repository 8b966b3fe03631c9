"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math


def cosine(
    step: int,
    steps_per_epoch: int,
    epochs: int,
    lr: float,
    final_lr: float,
    warmup_epochs: float = 0.0,
    by: str = "epoch",
) -> float:
    """The learning rate of `step` (0-based): linear from 0 over the warm-up, then half a cosine from lr to final_lr.

    by `epoch`: constant within an epoch, as the released code; by `step`: it moves at every step.
    """
    position, share = _position(step, steps_per_epoch, warmup_epochs, by)
    if share is not None:
        return lr * share
    share = (position - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)  # a run may be all warm-up
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * share))


def constant(step: int, steps_per_epoch: int, lr: float, warmup_epochs: float = 0.0, by: str = "epoch", **_) -> float:
    """The same learning rate after a linear warm-up; takes what `cosine` takes."""
    _, share = _position(step, steps_per_epoch, warmup_epochs, by)
    return lr if share is None else lr * share


def _position(step: int, steps_per_epoch: int, warmup_epochs: float, by: str) -> tuple[float, float | None]:
    """Where a step is in epochs, and its share of the warm-up, None after it."""
    position = step / steps_per_epoch if by == "step" else float(step // steps_per_epoch)
    done = position + (1 / steps_per_epoch if by == "step" else 1)
    return position, done / warmup_epochs if position < warmup_epochs else None
