"""The project's one error for mistakes a user can mend, and how every command-line tool reports it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence


class UserError(Exception):
    """One line that names the file or key, what was expected, and what to do. Tools print it and exit with 2."""


def command(main: Callable[[Sequence[str] | None], int | None]) -> Callable[[Sequence[str] | None], int]:
    """Turn `main(argv)` into a tool: exit code 0, 2 for a `UserError` (one line on stderr), 130 for Ctrl-C."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv) or 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130

    return run
