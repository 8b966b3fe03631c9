"""Waiting for an event in another process, for as long as a slow and busy machine may need."""

from __future__ import annotations

import time
from collections.abc import Callable

LIMIT_SECONDS = 500  # no test depends on it: it ends a wait for what will never come, before pytest's own timeout


def wait_until(
    happened: Callable[[], object], what: str, alive: Callable[[], bool] | None = None, interval: float = 0.02
) -> None:
    """Return when `happened()` is true, asked every `interval` seconds.

    Fails when `alive()` is false before: what should bring the event about has ended.
    """
    deadline = time.monotonic() + LIMIT_SECONDS
    while not happened():
        assert alive is None or alive() or happened(), f"{what}: ended before"
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT_SECONDS} s"
        time.sleep(interval)
