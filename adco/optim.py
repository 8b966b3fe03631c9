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
    position = step / steps_per_epoch if by == "step" else float(step // steps_per_epoch)
    if position < warmup_epochs:
        return lr * (position + (1 / steps_per_epoch if by == "step" else 1)) / warmup_epochs
    share = (position - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)  # a run may be all warm-up
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * share))


def constant(lr: float, **_: object) -> float:
    """The same learning rate at every step; takes and ignores what `cosine` takes."""
    return lr
