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
    """The learning rate of a step: linear from 0 to `lr` over the warm-up, then half a cosine from `lr` to `final_lr`.

    Args:
        step: Number of the step in the run, from 0.
        steps_per_epoch: Steps of an epoch.
        epochs: Epochs of the run, warm-up included.
        lr, final_lr: Learning rates after the warm-up and at the end of the run.
        warmup_epochs: Epochs of warm-up.
        by: `epoch`: constant within an epoch, as in AdCo's released code; `step`: changes at every step.
    """
    position, share = _position(step, steps_per_epoch, warmup_epochs, by)
    if share is not None:
        return lr * share
    share = (position - warmup_epochs) / max(epochs - warmup_epochs, 1e-9)  # a run may be all warm-up
    return final_lr + 0.5 * (lr - final_lr) * (1 + math.cos(math.pi * share))


def constant(step: int, steps_per_epoch: int, lr: float, warmup_epochs: float = 0.0, by: str = "epoch", **_) -> float:
    """`lr` after a linear warm-up. Takes the arguments of `cosine`, and ignores `epochs` and `final_lr`."""
    _, share = _position(step, steps_per_epoch, warmup_epochs, by)
    return lr if share is None else lr * share


def _position(step: int, steps_per_epoch: int, warmup_epochs: float, by: str) -> tuple[float, float | None]:
    """(the step's position in epochs, its share of the warm-up or None after it)."""
    position = step / steps_per_epoch if by == "step" else float(step // steps_per_epoch)
    done = position + (1 / steps_per_epoch if by == "step" else 1)
    return position, done / warmup_epochs if position < warmup_epochs else None
