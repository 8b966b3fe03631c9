"""What a step is asked for and what it gets: Request -> Batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from adco.data.transforms import functional, parameters


@dataclass(frozen=True)
class Batch:
    """pixels: V tensors (B, 3, S_v, S_v), uint8 levels or normalised float32; bad: path -> reason.

    choices: the pixel work still to be done on the device, one set a view; None where it is done.
    """

    pixels: tuple[Tensor, ...]
    choices: tuple[parameters.AugmentParams, ...] | None
    bad: dict[str, str]

    def to(self, device: torch.device) -> Batch:
        """The same batch with its pixels on the device; the choices stay on the CPU."""
        return replace(self, pixels=tuple(p.to(device, non_blocking=True) for p in self.pixels))

    def to_views(self, device: torch.device, channels_last: bool = True) -> list[Tensor]:
        """V normalised float views (B, 3, S_v, S_v) on the device, channels last in memory or contiguous."""
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        pixels = self.to(device).pixels
        if self.choices is not None:
            made = map(functional.augment, pixels, self.choices)
        else:
            made = (functional.from_uint8(p) if p.dtype == torch.uint8 else p for p in pixels)
        return [view.contiguous(memory_format=memory_format) for view in made]


@dataclass(frozen=True)
class Request:
    """The samples of one step (this rank's rows of them) and the epoch whose random choices they take."""

    epoch: int
    samples: np.ndarray


def merged(bad: Iterable[dict[str, str]]) -> dict[str, str]:
    """One dictionary, path -> reason, of several."""
    return {path: reason for part in bad for path, reason in part.items()}


@dataclass(frozen=True)
class RowByRow:
    """Work that makes one row at a time.

    fill: fill(row, sample, bad) makes a row, in any thread, and notes unreadable images in `bad`, path -> reason
    finish: the batch, given the unreadable images of all rows
    """

    samples: np.ndarray
    fill: Callable[[int, int, dict[str, str]], None]
    finish: Callable[[dict[str, str]], object]

    def rows(self, first: int, last: int) -> dict[str, str]:
        """Make rows [first, last); returns the unreadable images met."""
        bad: dict[str, str] = {}
        for row in range(first, last):
            self.fill(row, int(self.samples[row]), bad)
        return bad

    def batch(self, bad: Sequence[dict[str, str]]) -> object:
        """The finished batch."""
        return self.finish(merged(bad))
