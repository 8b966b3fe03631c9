"""Requests to stop, by Ctrl-C or by a scheduler, on any rank."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from adco.utils.errors import Requeue

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; a scheduler's end of a job; its warning before


class StopRequests:
    """A context manager in which SIGNALS are recorded only. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> StopRequests:
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def any_rank(self) -> bool:
        """Whether any rank was asked to stop, so that all ranks stop after the same step."""
        from adco.utils import distributed  # imports torch, which only processes with ranks need

        return distributed.any_rank(bool(self.number))

    def stop(self) -> None:
        """Raise KeyboardInterrupt for Ctrl-C, Requeue for a scheduler's signal."""
        from adco.utils import distributed

        number = max(distributed.all_gather_objects(self.number))
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Requeue(f"{signal.Signals(number).name} came; the same command with --resume goes on from here")

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGINT and self.number == number:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def starting_processes() -> Iterator[None]:
    """Processes spawned in the block do not see Ctrl-C, even while they import. This process gets it at the end."""
    resource_tracker.ensure_running()  # its start would unblock signals
    missed: list[bool] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the processes inherit it
    before = signal.signal(signal.SIGINT, lambda *_: missed.append(True))  # another thread may still receive it
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if missed:
            signal.raise_signal(signal.SIGINT)
