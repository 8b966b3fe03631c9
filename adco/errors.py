"""The project's one error for mistakes a user can mend, and how every command-line tool reports it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

REQUEUE = 75  # EX_TEMPFAIL: "try again later", the code that a scheduler's script requeues on


class UserError(Exception):
    """One line that names the file or key, what was expected, and what to do. Tools print it and exit with 2."""


class Requeue(Exception):
    """The work was put down where it can be taken up again, as the machine asked (SIGTERM, SIGUSR1). Exit code 75."""


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[[Sequence[str] | None], int]:
    """Turn `main(argv)` into a tool: exit 0; 2 for a UserError (one line on stderr), 75 for Requeue, 130 for Ctrl-C."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except Requeue as reason:
            print(f"\nput down: {reason}", file=sys.stderr)
            return REQUEUE
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130

    return run
