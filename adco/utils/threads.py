"""Batches made by threads, which share out the rows of a batch, in the order in which they are asked for.

No process is forked: a fork beside the threads of CUDA or gloo may hang or crash the child. What takes the time
(decoding, resizing, the C kernel) holds no lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

AHEAD = 3  # batches being made while one is used
R = TypeVar("R")  # what a batch is asked for with


class BatchTask(Protocol):
    """A batch in the making: threads make its rows, a part each, and `batch` is given what `rows` returned of each."""

    samples: np.ndarray

    def rows(self, first: int, last: int) -> object: ...

    def batch(self, parts: Sequence) -> object: ...


def host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor of the CPU for threads to fill, pinned where it is for a GPU (torch keeps the memory for
    the next one itself). Threads do not inherit inference mode, and could not write to a tensor made in it."""
    with torch.inference_mode(False):
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


def at_once(work: BatchTask) -> object:
    """What a work's `batch` gives, made here and now."""
    return work.batch([work.rows(0, len(work.samples))])


def in_threads(begin: Callable[[R], BatchTask], wanted: Iterable[R], workers: int) -> Generator:
    """What `batch` gives for each request, by threads that hold no lock and share out the rows of a batch (0: none).

    The threads end with the generator: one that may be left by an error belongs into `contextlib.closing`, because the
    error's traceback keeps it otherwise.
    """
    if not workers:
        yield from map(at_once, map(begin, wanted))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="views")
    unfinished: deque[tuple[BatchTask, list[Future]]] = deque()
    try:
        for request in wanted:
            work = begin(request)
            size = len(work.samples)
            chunk = max(1, size // (4 * workers))
            unfinished.append((work, [pool.submit(work.rows, i, min(i + chunk, size)) for i in range(0, size, chunk)]))
            if len(unfinished) > AHEAD:
                yield _next_finished(unfinished)
        while unfinished:
            yield _next_finished(unfinished)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _next_finished(unfinished: deque[tuple[BatchTask, list[Future]]]) -> object:
    work, parts = unfinished.popleft()
    return work.batch([part.result() for part in parts])
