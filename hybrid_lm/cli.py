"""Command lines: typed options from dataclasses (tyro), errors as one line."""

import contextlib
import difflib
import io
import re
import sys
from typing import Any

import tyro

from hybrid_lm.errors import UserError


def parse[T](
    kind: type[T], args: list[str], *, default: T | None = None, description: str = ""
) -> T:
    """Options ``args`` -> an instance of the dataclass ``kind``, fields not given from ``default``.

    ``--help`` prints every option with its type, default and docstring, and exits 0.

    Raises:
        UserError: for an unknown option (with the nearest known one) or a value of the wrong type.
    """
    given: dict[str, Any] = {} if default is None else {"default": default}
    value, unknown = _parse(kind, args, given, description)
    if unknown:
        raise UserError(_unknown(kind, unknown[0], given, description))
    return value


def parse_known[T](kind: type[T], args: list[str]) -> tuple[T, list[str]]:
    """`parse`, and in their order the arguments that are not of ``kind``."""
    return _parse(kind, args, {}, "")


def _parse[T](
    kind: type[T], args: list[str], given: dict[str, Any], description: str
) -> tuple[T, list[str]]:
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
                kind, args=args, description=description, return_unknown_args=True, **given
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UserError(_one_line(printed.getvalue())) from None


def take(args: list[str], option: str) -> str | None:
    """Remove ``option VALUE`` (or ``option=VALUE``) from ``args`` and return the value."""
    for i, arg in enumerate(args):
        if arg.startswith(f"{option}="):
            return args.pop(i).split("=", 1)[1]
        if arg == option:
            if i + 1 == len(args):
                raise UserError(f"{option} needs a value")
            args.pop(i)
            return args.pop(i)
    return None


def _one_line(boxed: str) -> str:
    """Tyro's boxed message as one line."""
    words = re.sub(r"[─│╭╮╰╯]", " ", boxed).split()
    text = " ".join(words)
    return text.split(" For full helptext")[0]


def _unknown(kind: type, option: str, given: dict[str, Any], description: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], description=description, **given)
    known = sorted(set(re.findall(r"--[a-z][a-z0-9_.-]+", printed.getvalue())))
    name = option.split("=", 1)[0]
    near = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else "; --help lists the options"
    return f"unknown option {option!r}{hint}"


def arguments() -> list[str]:
    """The command line without the program's name."""
    return sys.argv[1:]
