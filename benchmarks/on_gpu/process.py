"""A section's process for benchmarks/gpu.py: it outlives neither its limit nor its starter, nor does it fill a disk."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from adco.launch import supervisor
from adco.utils.errors import one_line
from benchmarks.on_gpu.figures import Result

GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL
HEAD_BYTES = TAIL_BYTES = 256 << 10  # of its output that are logged


def run_process(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], log: BinaryIO, limit: float
) -> Result:
    """Run a command in a process group of its own, for `limit` seconds at most, and say how it ended. Ctrl-C ends it,
    too, and is not raised again: the result is `interrupted`."""
    begin, result, reason = time.monotonic(), "", ""
    process = subprocess.Popen(
        [sys.executable, "-I", supervisor.__file__, *words],  # it ends when this process does, however it does
        cwd=folder, env=environment, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output = Output(process.stdout, log)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        result, reason = "killed", f"at its limit of {limit:.0f} s"
    except KeyboardInterrupt:
        result, reason = "interrupted", "by Ctrl-C or SIGTERM"
    finally:
        end_group(process)
        last = output.end()
    code = process.returncode
    if not result:
        result, reason = ("failed", _signal_name(code) or last) if code else ("ended", "")
    return Result(result, round(time.monotonic() - begin, 1), code, reason)


def end_group(process: subprocess.Popen) -> None:
    """End what is left of the process and its group: SIGTERM, then SIGKILL."""
    with uninterrupted():
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if number == signal.SIGKILL or process.poll() is None:
                    os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        process.stdin.close()


class Output(threading.Thread):
    """Copies a process's output into the log: the first HEAD_BYTES at once, of the rest the last TAIL_BYTES at the
    end, so that a process that prints without end fills no disk."""

    def __init__(self, pipe: BinaryIO, log: BinaryIO):
        super().__init__(daemon=True)
        self.pipe, self.log = pipe, log
        self.room, self.omitted = HEAD_BYTES, 0
        self.tail, self.recent = bytearray(), b""
        self.start()

    def run(self) -> None:
        while block := os.read(self.pipe.fileno(), 1 << 16):
            self.recent = (self.recent + block)[-4096:]
            self.log.write(block[: self.room])
            self.tail += block[self.room :]
            self.room -= min(self.room, len(block))
            if len(self.tail) > 4 * TAIL_BYTES:  # seldom: what is behind has to be moved
                self._shorten()

    def end(self) -> str:
        """Write the tail; returns the last line printed. To be called once the process has ended."""
        self.join(GRACE_SECONDS)  # a process that left the group may still hold the pipe
        self._shorten()
        self.log.write((f"\n[{self.omitted} bytes left out]\n".encode() if self.omitted else b"") + self.tail)
        if not self.is_alive():
            self.pipe.close()
        lines = self.recent.decode(errors="replace").strip().splitlines()
        return one_line(lines[-1])[:300] if lines else ""

    def _shorten(self) -> None:
        excess = max(0, len(self.tail) - TAIL_BYTES)
        del self.tail[:excess]
        self.omitted += excess


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal_name(code: int) -> str:
    """SIGSEGV for 139 and -11, as shells and subprocess have it; empty for other codes."""
    number = -code if code < 0 else code - 128
    return signal.Signals(number).name if number in iter(signal.Signals) else ""
