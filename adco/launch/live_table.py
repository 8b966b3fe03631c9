"""The display of running jobs: a live table in a terminal, elsewhere one line for each event."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

STYLES = {"running": "cyan", "ended": "green", "reused": "green dim", "failed": "bold red", "left": "yellow"}


class LiveTable:
    """Shows the state of jobs while the context is entered.

    Args:
        expected_minutes: The expected duration of each job by its name; None when it is not known.
    """

    def __init__(self, expected_minutes: Mapping[str, float | None]):
        self.expected = dict(expected_minutes)
        self.status = dict.fromkeys(self.expected, "waiting")
        self.start: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.messages = dict.fromkeys(self.expected, "")
        self.console = Console(file=sys.stdout)
        self.live = Live(console=self.console, refresh_per_second=4) if self.console.is_terminal else None

    def __enter__(self) -> LiveTable:
        if self.live:
            self.live.start()
            self._draw()
        return self

    def __exit__(self, *_) -> None:
        if self.live:
            self._draw()
            self.live.stop()

    def started(self, name: str, log: Path) -> None:
        """Show that a job has started."""
        self.status[name], self.start[name] = "running", time.monotonic()
        self._line(f"{name}: started; log {log}")

    def finished(self, name: str, status: str, why: str, seconds: float) -> None:
        """Show how a job has ended, and why."""
        self.status[name], self.messages[name], self.seconds[name] = status, why, seconds
        took = f" after {duration(seconds)}" if seconds else ""
        self._line(f"{name}: {status}{took}{': ' if why else ''}{why}")

    def tick(self, messages: Mapping[str, str]) -> None:
        """Redraw the table with the last line of each running job's log."""
        self.messages.update(messages)
        self._draw()

    def note(self, text: str) -> None:
        """Print a line below the table."""
        if self.live:
            self.console.print(text, markup=False, highlight=False)
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        if self.live:
            self._draw()
        else:
            print(f"{datetime.now():%H:%M:%S} {text}", flush=True)

    def _draw(self) -> None:
        if self.live:
            self.live.update(self.table(self.console.height - 2))

    def table(self, rows: int) -> Table:
        """One row for each job: its state, elapsed and expected time, and the last line of its log.

        With more jobs than `rows` only those that run or have failed are shown, and the others are counted.
        """
        table = Table(box=None, pad_edge=False, expand=True)
        table.add_column("stage", no_wrap=True, min_width=min(48, max(map(len, self.status), default=5)))
        table.add_column("state", no_wrap=True, min_width=len("running"))
        table.add_column("time", justify="right", no_wrap=True, min_width=len("1.5 min"))
        table.add_column("expected", justify="right", no_wrap=True, min_width=len("expected"))
        table.add_column("says", no_wrap=True, overflow="ellipsis", ratio=1)
        fits = len(self.status) < rows
        shown = {name: status for name, status in self.status.items() if fits or status in ("running", "failed")}
        others = Counter(status for name, status in self.status.items() if name not in shown)
        table.caption = ", ".join(f"{count} {status}" for status, count in others.items()) or None
        table.caption_justify = "left"
        for name, status in shown.items():
            seconds = time.monotonic() - self.start[name] if status == "running" else self.seconds.get(name)
            minutes = self.expected[name]
            table.add_row(
                name,
                Text(status, STYLES.get(status, "dim")),
                duration(seconds) if seconds else "",
                "" if minutes is None else duration(60 * minutes),
                Text(self.messages[name], "dim"),
            )
        return table


def duration(seconds: float) -> str:
    """A duration in words: `45 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
