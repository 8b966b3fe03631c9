"""Run a command so that it cannot outlive its starter, who holds stdin open: `python -I leash.py COMMAND ...`.

When the starter dies, even by SIGKILL, its end of the pipe closes and the whole process group is killed: the command,
its workers and theirs. (PR_SET_PDEATHSIG would reach only the command itself.) Signals to the group reach the command
and leave the leash to wait for it. Only the standard library, so that it starts at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(words: list[str]) -> int:
    """The command's exit code; 128 + N when signal N ended it."""
    early = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: early.append(number))  # unlike SIG_IGN not inherited by the command
    try:
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"error: {words[0]}: cannot be started ({error.strerror})", file=sys.stderr)
        return 127
    for number in early:  # came before there was a command to reach
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
