"""A progress bar for whatever takes long. Without torch, so that processes which only train SVMs start quickly."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from threading import RLock

from tqdm import tqdm

tqdm.set_lock(RLock())  # the usual one is shared with forked processes; one killed while it draws would keep it


def progress(
    total: int, title: str, unit: str, initial: int = 0, shown: bool = True, items: Iterable | None = None
) -> tqdm:
    """A progress bar with rate and time left on stderr; in a log file a line every 30 seconds instead.

    shown: False on all ranks but one; items: what an iteration over the bar gives, each a step of it.
    """
    quiet = 0.1 if sys.stderr.isatty() else 30
    pace = {"mininterval": quiet, "maxinterval": max(10, quiet), "delay": 0 if quiet < 1 else quiet}
    return tqdm(items, total=total, initial=initial, desc=title, unit=unit, disable=not shown, **pace)
