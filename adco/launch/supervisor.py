"""Run a command so that it cannot outlive the process that started it.

`start` runs this file as `python -I supervisor.py COMMAND ...` and holds its stdin open. When the starter dies, even by
SIGKILL, its end of the pipe closes and the whole process group is killed: the command, its workers and theirs.
(PR_SET_PDEATHSIG would reach only the command itself.) A signal to the group reaches the command; the supervisor
ignores it and waits for the command. Only the standard library is imported, so that a command starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO


def start(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command under a supervisor, which leads a process group of its own.

    Args:
        command: The command line; no shell reads it.
        env: As of `subprocess.Popen`, like the other options.
        cwd: The working folder.
        stdout: Where the command's output goes.
        stderr: Where its errors go.

    Returns:
        The supervisor's process. Its exit code is the command's, or 128 + N when signal N ended the command.
    """
    return subprocess.Popen(
        [sys.executable, "-I", __file__, *command],
        env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, start_new_session=True,
    )  # fmt: skip


def main(command: list[str]) -> int:
    """Run the command to its end. Returns its exit code; 128 + N when signal N ended it; 127 when it cannot start."""
    early: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: early.append(number))  # unlike SIG_IGN not inherited by the command
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"error: {command[0]}: cannot be started ({error.strerror})", file=sys.stderr)
        return 127
    for number in early:  # they came before there was a command to receive them
        child.send_signal(number)
    threading.Thread(target=_die_with_the_starter, daemon=True).start()
    code = child.wait()
    return 128 - code if code < 0 else code


def _die_with_the_starter() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
