"""Images a second, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class Throughput:
    """Speed since it was last asked for, and the share of that time in which the device waited for images.

    Args:
        device: The device that trains; on a GPU its own queue is measured.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.last, self.count, self.waited = time.perf_counter(), 0, 0.0
        self.cuda = device is not None and device.type == "cuda"
        self.waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, images: int) -> float:
        """Images per second since the last call; `images` is how many have been processed in all."""
        return self.scalars(images)["images_per_second"]

    def scalars(self, images: int) -> dict[str, float]:
        """`images_per_second`, `loader_wait_share` in [0, 1], on a GPU `gpu_memory_gib` (this rank's peak so far)."""
        now, waited = time.perf_counter(), self._seconds_waited()
        seconds, new_images = now - self.last, images - self.count
        self.last, self.count = now, images
        values = {"images_per_second": new_images / seconds, "loader_wait_share": min(1.0, waited / seconds)}
        if self.cuda:
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and count the time until each comes as waiting.

        A GPU works on while the CPU waits for images. What counts there is the gap in the GPU's own queue, between an
        event before the wait and one after it; it is 0 while the GPU is busy with earlier steps.
        """
        batches = iter(batches)
        while True:
            start, before = time.perf_counter(), _event() if self.cuda else None
            try:
                batch = next(batches)
            except StopIteration:
                return
            if before is not None:
                self.waits.append((before, _event()))
            else:
                self.waited += time.perf_counter() - start
            yield batch

    def _seconds_waited(self) -> float:
        if self.waits:
            self.waits[-1][1].synchronize()
            self.waited += sum(before.elapsed_time(after) for before, after in self.waits) / 1000
            self.waits.clear()
        waited, self.waited = self.waited, 0.0
        return waited


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
