"""A progress bar. Without torch, so that processes which only train SVMs start quickly."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from threading import RLock

from tqdm import tqdm

tqdm.set_lock(RLock())  # the usual one is shared with forked processes; one killed while it draws would keep it


def progress(
    total: int | None, title: str, unit: str, initial: int = 0, shown: bool = True, items: Iterable | None = None
) -> tqdm:
    """A progress bar with rate and time left on stderr; in a log file a line every 30 seconds instead.

    Args:
        total: Steps at the end; None where they are not known.
        title: Text before the bar.
        unit: Of a step, e.g. `images`.
        initial: Steps at the start.
        shown: False on all ranks but one.
        items: What an iteration over the bar yields, one step each.
    """
    seconds = 0.1 if sys.stderr.isatty() else 30  # between two updates
    return tqdm(
        items, total=total, initial=initial, desc=title, unit=unit, disable=not shown,
        mininterval=seconds, maxinterval=max(10, seconds), delay=0 if seconds < 1 else seconds,
    )  # fmt: skip
