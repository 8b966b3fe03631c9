"""The project's one error for mistakes a user can mend, and how every command-line tool reports it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

REQUEUE = 75  # EX_TEMPFAIL: "try again later", the code that a scheduler's script requeues on


class UserError(Exception):
    """One line that names the file or key, what was expected, and what to do. Tools print it and exit with 2."""


class Failure(Exception):
    """What broke is no mistake of the user's: one line that says what, and where the details lie. Exit code 1."""


class Requeue(Exception):
    """The work was put down where it can be taken up again, as the machine asked (SIGTERM, SIGUSR1). Exit code 75."""


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[[Sequence[str] | None], int]:
    """Turn `main(argv)` into a tool: exit 0; on an error one line on stderr and 2 for a UserError, 1 for a Failure, 75
    for Requeue, 130 for Ctrl-C. An error with an attribute `told` has been printed by another rank."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except (UserError, Failure) as error:
            mistake = isinstance(error, UserError)
            if not getattr(error, "told", False):
                print(f"{'error' if mistake else 'failed'}: {error}", file=sys.stderr)
            return 2 if mistake else 1
        except Requeue as reason:
            print(f"\nput down: {reason}", file=sys.stderr)
            return REQUEUE
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130

    return run
