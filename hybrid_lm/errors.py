"""Errors the user can act on: one clear line and exit code 2, never a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user gave (config, pattern, corpus, run directory) cannot be used as it is.

    The message says what is wrong and what to do; it may hold a second line with a caret.
    """


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run a command's ``main``; a `UserError` prints as ``error: ...`` and exits with code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
