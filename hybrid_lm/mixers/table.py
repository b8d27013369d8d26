"""The table of all registered mixers, for the README.

python -m hybrid_lm.mixers.table README.md      (rewrites the table in the file)
"""

import inspect
import re
import sys
from pathlib import Path

from hybrid_lm.errors import UserError, exit_on_user_error
from hybrid_lm.mixers.base import MixerConfig, get, names

WIDTH, LENGTH = 512, 8192
START, END = "<!-- mixers: python -m hybrid_lm.mixers.table README.md -->", "<!-- /mixers -->"


def markdown() -> str:
    """One row per registered mixer at its defaults: what it is, what it costs, who described it.

    Costs are per layer of width `WIDTH` on a row of `LENGTH` tokens in bfloat16.
    """
    columns = ("key", "what it is", "state", "MFLOPs/token", "packs", "both ways", "source")
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]
    lines += [f"| {' | '.join(_row(key, get(key)))} |" for key in names()]
    return "\n".join(lines)


def replace_in(text: str) -> str:
    """``text`` with the table between `START` and `END` as it is now."""
    pattern = re.compile(f"{re.escape(START)}.*?{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise UserError(f"there is no {START} ... {END} to put the table in")
    return pattern.sub(lambda _: f"{START}\n{markdown()}\n{END}", text)


def what(kind: type[MixerConfig]) -> str:
    """The first sentence of the mixer's file."""
    text = inspect.getdoc(inspect.getmodule(kind)) or ""
    return text.split("\n\n")[0].replace("\n", " ").rstrip(".")


def paper(kind: type[MixerConfig]) -> str | None:
    """arXiv number of the first paper that the mixer's docstring names."""
    found = re.search(r"arXiv\s+(\d{4}\.\d{5})", inspect.getdoc(kind) or "")
    return found[1] if found else None


def _row(key: str, kind: type[MixerConfig]) -> tuple[str, ...]:
    cost = kind().cost(WIDTH, LENGTH)
    number = paper(kind)
    source = f"[{number}](https://arxiv.org/abs/{number})" if number else "–"
    return (
        f"`{key}`",
        what(kind),
        f"{cost.state_bytes / 2**10:,.0f} KiB",
        f"{cost.flops_per_token / 1e6:.1f}",
        "yes" if kind.packable else "no",
        "yes" if hasattr(kind, "causal") else "–",
        source,
    )


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("name the file that holds the table, e.g. README.md")
    path = Path(sys.argv[1])
    path.write_text(replace_in(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    exit_on_user_error(main)
