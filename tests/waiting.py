"""Waiting for an event in another process, for as long as a slow and busy machine may need."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

LIMIT_SECONDS = 500  # no test depends on it: it ends a wait for what will never come, before pytest's own timeout


def wait_until(happened: Callable[[], bool], what: str, process: subprocess.Popen | None = None) -> None:
    """Return when `happened()` is true. Fails when the process that should bring it about has ended without it."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not happened():
        ended = process is not None and process.poll() is not None
        if ended and not happened():
            raise AssertionError(f"{what}: the process ended with {process.returncode} before")
        assert time.monotonic() < deadline, f"{what}: not within {LIMIT_SECONDS} s"
        time.sleep(0.02)
