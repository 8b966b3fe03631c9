"""The project's one error for mistakes a user can mend, and how every command-line tool reports it."""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from adco.utils.paths import cache_folder

REQUEUE = 75  # EX_TEMPFAIL: "try again later", the code that a scheduler's script requeues on
CLOSED = 141  # what a shell says of a program whose reader (`| head`) has gone: 128 + SIGPIPE


class UserError(Exception):
    """One line that names the file or key, what was expected, and what to do. Tools print it and exit with 2."""


USER_ERROR = f"{UserError.__module__}.{UserError.__qualname__}: "  # how a traceback's text names it


class Failure(Exception):
    """What broke is no mistake of the user's: one line that says what, and where the details lie. Exit code 1."""


class Requeue(Exception):
    """The work was put down where it can be taken up again, as the machine asked (SIGTERM, SIGUSR1). Exit code 75."""


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[[Sequence[str] | None], int]:
    """Turn `main(argv)` into a tool: exit 0; on an error one line on stderr and 2 for a UserError or a file that the
    system refuses, 1 for a Failure or any other exception, 75 for Requeue, 130 for Ctrl-C. An error whose
    attribute `reported` is true has been printed already, by this rank or another one."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names may hold any bytes
        try:
            return main(argv) or 0
        except (Requeue, KeyboardInterrupt) as reason:
            requeue = isinstance(reason, Requeue)
            if os.environ.get("RANK", "0") == "0":  # all ranks stop together, one speaks
                print(f"\nput down: {reason}" if requeue else "\ninterrupted", file=sys.stderr)
            return REQUEUE if requeue else 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
            return CLOSED
        except Exception as error:
            return report(error)

    return run


def report(error: Exception) -> int:
    """Print what went wrong on one line of stderr, once, and return the exit code that `command` gives it."""
    line, code = _explained(error)
    alone = os.environ.get("LOCAL_RANK", "0") == "0"  # before ranks have met, a machine's first one reports
    if not getattr(error, "reported", not alone):
        print(line, file=sys.stderr, flush=True)
    error.reported = True
    return code


def one_line(text: object) -> str:
    """A message on one line; what a terminal would obey or cannot show is written as an escape."""
    text = " ".join(line.strip() for line in str(text).splitlines() if line.strip())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _explained(fault: Exception) -> tuple[str, int]:
    """(the line to print, the exit code)."""
    if isinstance(fault, UserError):
        # from a worker process torch brings an error back with the whole traceback as its text
        return f"error: {one_line(str(fault).rpartition(USER_ERROR)[2])}", 2
    if isinstance(fault, Failure):
        return f"failed: {one_line(fault)}", 1
    if isinstance(fault, OSError) and isinstance(fault.filename, (str, bytes)):
        return f"error: {one_line(os.fsdecode(fault.filename))}: {fault.strerror}; choose another, or mend it", 2
    return f"failed: {type(fault).__name__}: {one_line(fault)[:300]}; {_save_details(fault)}", 1


def _save_details(fault: Exception) -> str:
    """Write the traceback to the user's cache folder, else to the system's for temporary files; says where."""
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
