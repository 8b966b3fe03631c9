"""Run a process with a time limit; its log is bounded, and it cannot outlive this process. For benchmarks/gpu.py."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from adco.launch import supervisor
from adco.utils.errors import one_line
from benchmarks.on_gpu.figures import Result

GRACE_SECONDS = 3.0  # between SIGTERM and SIGKILL
HEAD_BYTES = TAIL_BYTES = 256 << 10  # of the output that are logged


def run_process(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    limit: float,
    write: Callable[[bytes], object],
) -> Result:
    """Run a command in a process group of its own, and end what it leaves running.

    Args:
        command: The command line.
        folder: Its working folder.
        environment: All of its variables.
        limit: Seconds after which it is killed.
        write: Called with each block of its output, from another thread.

    Returns:
        How it ended. Ctrl-C ends it, too, and is not raised again: the result is then `interrupted`.
    """
    begin, result, reason = time.monotonic(), "", ""
    process = supervisor.start(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    output = _Output(process.stdout, write)
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        result, reason = "killed", f"at its limit of {limit:.0f} s"
    except KeyboardInterrupt:
        result, reason = "interrupted", "by Ctrl-C or SIGTERM"
    finally:
        _end_group(process)
        last = output.end()
    code = process.returncode
    if not result:
        result, reason = ("failed", _signal_name(code) or last) if code else ("ended", "")
    return Result(result, round(time.monotonic() - begin, 1), code, reason)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the process and its group: SIGTERM, then SIGKILL."""
    with uninterrupted():
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if number == signal.SIGKILL or process.poll() is None:
                    os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        if process.stdin:
            process.stdin.close()


class _Output(threading.Thread):
    """Reads a process's output to its end."""

    def __init__(self, pipe: IO[bytes], write: Callable[[bytes], object]):
        super().__init__(daemon=True)
        self.pipe, self.write, self.recent = pipe, write, b""
        self.start()

    def run(self) -> None:
        while block := os.read(self.pipe.fileno(), 1 << 16):
            self.recent = (self.recent + block)[-4096:]
            self.write(block)

    def end(self) -> str:
        """The last line of the output. To be called when the process has ended."""
        self.join(GRACE_SECONDS)  # a process that left the group may still hold the pipe
        if not self.is_alive():
            self.pipe.close()
        lines = self.recent.decode(errors="replace").strip().splitlines()
        return one_line(lines[-1])[:300] if lines else ""


class BoundedLog:
    """Writes the first HEAD_BYTES to a file at once and the last TAIL_BYTES when it is closed, so that a process that
    prints without end does not fill the disk."""

    def __init__(self, file: BinaryIO):
        self.file, self.room, self.omitted, self.tail = file, HEAD_BYTES, 0, bytearray()

    def write(self, block: bytes) -> None:
        """Take a block of output."""
        self.file.write(block[: self.room])
        self.tail += block[self.room :]
        self.room -= min(self.room, len(block))
        if len(self.tail) > 4 * TAIL_BYTES:  # rarely: the rest of the buffer has to be moved
            self._shorten()

    def close(self) -> None:
        """Write the tail."""
        self._shorten()
        self.file.write((f"\n[{self.omitted} bytes left out]\n".encode() if self.omitted else b"") + self.tail)

    def _shorten(self) -> None:
        excess = max(0, len(self.tail) - TAIL_BYTES)
        del self.tail[:excess]
        self.omitted += excess


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the block has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _signal_name(code: int) -> str:
    """`SIGSEGV` for 139 (a shell's code) and -11 (subprocess's); empty for codes that are no signal's."""
    number = -code if code < 0 else code - 128
    return signal.Signals(number).name if number in iter(signal.Signals) else ""
