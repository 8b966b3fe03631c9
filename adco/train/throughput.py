"""Images a second, and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class Throughput:
    """Speed since the last question, and the share of that time in which the device waited for images."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.last, self.count, self.waited = time.perf_counter(), 0, 0.0
        self.cuda = device is not None and device.type == "cuda"
        self.waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __call__(self, images: int) -> float:
        """Images per second since the last question; `images` is how many have been seen in all."""
        return self.scalars(images)["images_per_second"]

    def scalars(self, images: int) -> dict[str, float]:
        """`images_per_second`, `loader_wait_share` in [0, 1], on a GPU `gpu_memory_gib` (this rank's peak so far)."""
        now, waited = time.perf_counter(), self._seconds_waited()
        took, seen = now - self.last, images - self.count
        self.last, self.count = now, images
        found = {"images_per_second": seen / took, "loader_wait_share": min(1.0, waited / took)}
        if self.cuda:
            found["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return found

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the time until each comes counts as waiting.

        A GPU works on while the CPU waits for images, so what counts there is the gap in the GPU's own queue: between
        an event before the wait and one after it. It is nought while the GPU is still busy with earlier steps.
        """
        batches = iter(batches)
        while True:
            start, before = time.perf_counter(), self._event()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self.cuda:
                self.waits.append((before, self._event()))
            else:
                self.waited += time.perf_counter() - start
            yield batch

    def _event(self) -> torch.cuda.Event | None:
        if not self.cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds_waited(self) -> float:
        if self.waits:
            self.waits[-1][1].synchronize()
            self.waited += sum(before.elapsed_time(after) for before, after in self.waits) / 1000
            self.waits.clear()
        waited, self.waited = self.waited, 0.0
        return waited
