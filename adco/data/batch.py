"""The samples of one step (Request), the images made of them (Batch), and work that makes a batch row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from adco.data.transforms import functional, parameters

T = TypeVar("T")  # what is made: a Batch, or crops with labels


@dataclass(frozen=True)
class Batch:
    """The V views of one step's B images.

    Attributes:
        pixels: V tensors (B, 3, S_v, S_v), uint8 levels or normalised float32.
        choices: parameters of the augmentation still to be applied on the device, one set a view; None where the pixels
            are augmented already.
        bad: path -> reason of the images that could not be read.
    """

    pixels: tuple[Tensor, ...]
    choices: tuple[parameters.AugmentParams, ...] | None
    bad: dict[str, str]

    def to(self, device: torch.device) -> Batch:
        """The same batch with its pixels on the device; the choices stay on the CPU."""
        return replace(self, pixels=tuple(p.to(device, non_blocking=True) for p in self.pixels))

    def to_views(self, device: torch.device, channels_last: bool = True) -> list[Tensor]:
        """The network's inputs, on the device, with the remaining augmentation applied.

        Args:
            device: where the views are made.
            channels_last: memory format of the views; contiguous otherwise.

        Returns:
            V float32 tensors (B, 3, S_v, S_v), normalised with ImageNet's statistics, without gradient.
        """
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        pixels = self.to(device).pixels
        if self.choices is not None:
            made = map(functional.augment, pixels, self.choices)
        else:
            made = (functional.from_uint8(p) if p.dtype == torch.uint8 else p for p in pixels)
        return [view.contiguous(memory_format=memory_format) for view in made]


@dataclass(frozen=True)
class Request:
    """The samples of one step (this rank's share of them), and the epoch whose random choices they take."""

    epoch: int
    samples: np.ndarray


def merged(bad: Iterable[dict[str, str]]) -> dict[str, str]:
    """One dictionary, path -> reason, of several."""
    return {path: reason for part in bad for path, reason in part.items()}


@dataclass
class RowByRow(Generic[T]):
    """A batch in the making, one row at a time, for `threads.in_threads`.

    Attributes:
        samples: (B,) numbers of the samples.
        fill: fill(row, sample, bad) makes a row, in any thread, and adds an unreadable image to `bad`, path -> reason.
        finish: the batch, given the unreadable images of all rows.
    """

    samples: np.ndarray
    fill: Callable[[int, int, dict[str, str]], None]
    finish: Callable[[dict[str, str]], T]

    def rows(self, first: int, last: int) -> dict[str, str]:
        """Make rows [first, last); returns their unreadable images, path -> reason."""
        bad: dict[str, str] = {}
        for row in range(first, last):
            self.fill(row, int(self.samples[row]), bad)
        return bad

    def batch(self, parts: Sequence[dict[str, str]]) -> T:
        """The finished batch, given what `rows` returned for each part of it."""
        return self.finish(merged(parts))
