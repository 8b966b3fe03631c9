"""Being asked to stop: by Ctrl-C, by a scheduler that needs the machine, on any rank."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker

from adco.utils.errors import Requeue

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; a scheduler's end; SLURM's warning before it


class StopRequests:
    """While entered, signals are noted instead of obeyed; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> StopRequests:
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def anywhere(self) -> bool:
        """Whether any rank was asked to stop: all ranks then stop after the same step."""
        from adco.utils import distributed  # torch: only for those who have ranks

        return distributed.any_rank(bool(self.number))

    def stop(self) -> None:
        """Raise KeyboardInterrupt for Ctrl-C, Requeue for what a scheduler sends."""
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
    """Processes started anew inside never see Ctrl-C, not even while they import; it reaches this one at the end."""
    resource_tracker.ensure_running()  # its start would let signals through
    missed = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which they inherit
    before = signal.signal(signal.SIGINT, lambda *_: missed.append(True))  # a thread that was there may still take it
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if missed:
            signal.raise_signal(signal.SIGINT)
