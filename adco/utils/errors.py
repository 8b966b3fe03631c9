"""The exceptions for errors of the user, and how every command-line tool reports them."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from adco.utils.paths import cache_folder

REQUEUE = 75  # EX_TEMPFAIL: "try again later", the code that a scheduler's script requeues on
CLOSED = 141  # 128 + SIGPIPE, the code of a program whose reader (`| head`) has ended


class UserError(Exception):
    """One line that names the file or key, what was expected, and what to do. Tools print it and exit with 2."""


USER_ERROR = f"{UserError.__module__}.{UserError.__qualname__}: "  # its name in the text of a traceback


class Failure(Exception):
    """An error that is not the user's: one line that says what failed, and where the details are. Exit code 1."""


class Requeue(Exception):
    """The work was interrupted by SIGTERM or SIGUSR1 at a point from which it can be resumed. Exit code 75."""


class Command(Protocol):
    """A tool: its arguments without the program's name, by default sys.argv's -> exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the tool."""
        ...


def command(main: Callable[[Sequence[str] | None], int | None]) -> Command:
    """Turn `main(argv)` into a tool that returns an exit code, and prints one line on stderr for an error.

    The codes are 0; 2 for a UserError, or a file that the system does not open; 1 for a Failure or any other exception;
    75 for Requeue; 130 for Ctrl-C. An error that was reported before (see `set_reported`) is not printed.
    """

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        if reconfigure := getattr(sys.stdout, "reconfigure", None):
            reconfigure(errors="backslashreplace")  # file names may hold any bytes
        try:
            return main(argv) or 0
        except (Requeue, KeyboardInterrupt) as reason:
            requeue = isinstance(reason, Requeue)
            if os.environ.get("RANK", "0") == "0":  # all ranks stop together, one prints
                print(f"\ninterrupted: {reason}" if requeue else "\ninterrupted", file=sys.stderr)
            return REQUEUE if requeue else 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest of the output is flushed to
            return CLOSED
        except Exception as error:
            return report(error)

    return run


def report(error: Exception) -> int:
    """Print what went wrong on one line of stderr, once, and return the exit code that `command` gives it."""
    line, code = _explained(error)
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # before the process group starts, one rank of a machine reports
    if not getattr(error, "reported", not first):
        print(line, file=sys.stderr, flush=True)
    set_reported(error)
    return code


def set_reported(error: Exception, reported: bool = True) -> None:
    """Note on an error that its line was printed, by this rank or another one: `report` then prints nothing."""
    vars(error)["reported"] = reported


def one_line(text: object) -> str:
    """A message on one line. Control characters and those that cannot be printed are written as escapes."""
    text = " ".join(line.strip() for line in str(text).splitlines() if line.strip())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _explained(fault: Exception) -> tuple[str, int]:
    """(the line to print, the exit code)."""
    if isinstance(fault, UserError):
        # torch raises the error of a worker process again with the whole traceback as its text
        return f"error: {one_line(str(fault).rpartition(USER_ERROR)[2])}", 2
    if isinstance(fault, Failure):
        return f"failed: {one_line(fault)}", 1
    if isinstance(fault, OSError) and isinstance(fault.filename, (str, bytes)):
        return f"error: {one_line(os.fsdecode(fault.filename))}: {fault.strerror}; choose another, or mend it", 2
    return f"failed: {type(fault).__name__}: {one_line(fault)[:300]}; {_save_details(fault)}", 1


def _save_details(fault: Exception) -> str:
    """Write the traceback to the cache folder, else to the folder for temporary files. Returns the place in words."""
    text = f"{sys.version}\n{' '.join(sys.argv)}\n\n{''.join(traceback.format_exception(fault))}"
    for folder in (cache_folder() / "failures", Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(".txt", f"{Path(sys.argv[0]).stem}-", folder)
            with os.fdopen(handle, "w", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return f"the details are in {path}, please report them"
    return f"no place to save the details:\n{text}"
