"""Batches made by threads, each of which makes some rows of a batch, in the order of the requests.

No process is forked: a fork beside the threads of CUDA or gloo may hang or crash the child. Decoding, resizing and the
C kernel, which take the time, release the GIL.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

AHEAD = 3  # batches being made while one is used
R = TypeVar("R")  # a request for a batch
T = TypeVar("T")  # a batch
T_co = TypeVar("T_co", covariant=True)


class BatchTask(Protocol[T_co]):
    """A batch that threads make in parts."""

    samples: np.ndarray

    def rows(self, first: int, last: int) -> Any:
        """Make rows [first, last) of the batch. Called by threads."""

    def batch(self, parts: Sequence[Any]) -> T_co:
        """The batch, from the results of all calls of `rows` in the order of the rows."""
        ...


def host_memory(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor on the CPU for threads to fill.

    Args:
        shape, dtype: Of the tensor.
        device: Where it is copied to; for a GPU the memory is pinned, and torch reuses it.
    """
    # threads do not inherit inference mode, and could not write to a tensor that was made in it
    with torch.inference_mode(False):
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=device.type == "cuda")


def at_once(work: BatchTask[T]) -> T:
    """The batch of a task, made in this thread."""
    return work.batch([work.rows(0, len(work.samples))])


def in_threads(begin: Callable[[R], BatchTask[T]], wanted: Iterable[R], workers: int) -> Generator[T, None, None]:
    """Yield the batch of each request, in their order, made by threads ahead of time.

    The threads end with the generator. Where an error may leave its loop, use `contextlib.closing`, because otherwise
    the error's traceback keeps the generator.

    Args:
        begin: Makes the task of a request.
        wanted: The requests.
        workers: Number of threads; 0: batches are made in this thread.
    """
    if not workers:
        yield from map(at_once, map(begin, wanted))
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="views")
    unfinished: deque[tuple[BatchTask[T], list[Future]]] = deque()
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


def _next_finished(unfinished: deque[tuple[BatchTask[T], list[Future]]]) -> T:
    work, parts = unfinished.popleft()
    return work.batch([part.result() for part in parts])
