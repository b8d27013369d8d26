"""The layer pattern: a one-line language for stacks of mixers, and the `Plan` it parses to.

Grammar (white space is free)::

    stack := group (';' group)*      group := [name ':'] seq      seq := term (',' term)*
    term  := (atom | '(' seq ')') ['*' int]

An atom is a key of ``config.model.mixers``. ``"early: attn*2; middle: (mamba*3, swa)*2"`` has two
groups; ``middle`` repeats the unit ``mamba, mamba, mamba, swa`` twice.
"""

import difflib
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import groupby

from hybrid_lm.errors import UserError

_TOKEN = re.compile(r"\s*(?:(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<int>\d+)|(?P<mark>[;:,*()]))")
_MAX_LAYERS = 10_000


class PatternError(UserError):
    """A pattern that does not parse, with a caret under the column where it goes wrong."""

    def __init__(self, text: str, column: int, problem: str):
        line = text.replace("\n", " ")
        super().__init__(f"layer pattern: {problem}\n  {line}\n  {' ' * column}^")
        self.column = column


@dataclass(frozen=True)
class Group:
    """A named run of layers: ``unit`` (mixer keys in order) stacked ``repeats`` times."""

    name: str
    unit: tuple[str, ...]
    repeats: int

    @property
    def layers(self) -> int:
        return len(self.unit) * self.repeats

    @property
    def pattern(self) -> str:
        """The group's part of the pattern in canonical form, e.g. ``(mamba*3, swa)*2``."""
        terms = [
            key if count == 1 else f"{key}*{count}"
            for key, count in ((key, len(list(run))) for key, run in groupby(self.unit))
        ]
        if self.repeats == 1:
            return ", ".join(terms)
        if len(self.unit) == 1:
            return f"{self.unit[0]}*{self.repeats}"
        return f"({', '.join(terms)})*{self.repeats}"


@dataclass(frozen=True)
class Plan:
    """What a pattern means: the groups in order, each reduced to its smallest repeating unit.

    ``Plan.parse(str(plan)) == plan`` holds for every plan.
    """

    groups: tuple[Group, ...]

    @property
    def layers(self) -> int:
        return sum(group.layers for group in self.groups)

    def __str__(self) -> str:
        return "; ".join(f"{group.name}: {group.pattern}" for group in self.groups)

    @classmethod
    def parse(cls, text: str, keys: Collection[str] | None = None) -> "Plan":
        """Parse ``text``; with ``keys``, an atom outside them is an error that suggests one.

        Groups without a name are called ``group1``, ``group2``, ... by their place.

        Raises:
            PatternError: with the column and a caret.
        """
        return _Parser(text, keys).plan()


class _Parser:
    """Recursive descent over the tokens of one pattern."""

    def __init__(self, text: str, keys: Collection[str] | None):
        self.text = text
        self.keys = keys
        self.tokens = list(self._tokenize())
        self.next = 0

    def _tokenize(self) -> Iterator[tuple[str, str, int]]:
        end = len(self.text.rstrip())
        column = 0
        while column < end:
            match = _TOKEN.match(self.text, column)
            if match is None:
                column += len(self.text[column:]) - len(self.text[column:].lstrip())
                raise PatternError(self.text, column, f"unexpected character {self.text[column]!r}")
            kind = match.lastgroup or ""
            yield kind, match.group(kind), match.start(kind)
            column = match.end()
        yield "end", "", end

    def plan(self) -> Plan:
        groups = [self._group(1)]
        while self._accept(";"):
            if self._peek()[0] == "end":
                break
            groups.append(self._group(len(groups) + 1, [group.name for group in groups]))
        kind, value, column = self._peek()
        if kind != "end":
            raise PatternError(self.text, column, f"expected ',', ';' or '*', found {value!r}")
        plan = Plan(tuple(groups))
        if plan.layers > _MAX_LAYERS:
            raise PatternError(
                self.text, 0, f"{plan.layers} layers, more than the {_MAX_LAYERS} allowed"
            )
        return plan

    def _group(self, place: int, taken: Collection[str] = ()) -> Group:
        name, column = f"group{place}", self._peek()[2]
        if self._peek()[0] == "word" and self.tokens[self.next + 1][1] == ":":
            name = self._take()[1]
            self._take()
        if name in taken:
            raise PatternError(self.text, column, f"group name {name!r} is used twice")
        return Group(name, *_smallest_unit(self._sequence()))

    def _sequence(self) -> tuple[str, ...]:
        layers = self._term()
        while self._accept(","):
            layers += self._term()
        return layers

    def _term(self) -> tuple[str, ...]:
        kind, value, column = self._take()
        if value == "(":
            layers = self._sequence()
            if not self._accept(")"):
                raise PatternError(self.text, self._peek()[2], "expected ')'")
        elif kind == "word":
            self._check_key(value, column)
            layers = (value,)
        else:
            found = f", found {value!r}" if value else ""
            raise PatternError(self.text, column, f"expected a mixer or '('{found}")
        if self._accept("*"):
            kind, value, column = self._take()
            if kind != "int" or int(value) == 0:
                raise PatternError(self.text, column, "expected a whole number >= 1 after '*'")
            if len(layers) * int(value) > _MAX_LAYERS:
                raise PatternError(self.text, column, f"more than the {_MAX_LAYERS} layers allowed")
            layers *= int(value)
        return layers

    def _check_key(self, key: str, column: int) -> None:
        if self.keys is None or key in self.keys:
            return
        near = difflib.get_close_matches(key, self.keys, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(self.keys))}"
        raise PatternError(self.text, column, f"unknown mixer {key!r}; {hint}")

    def _peek(self) -> tuple[str, str, int]:
        return self.tokens[self.next]

    def _take(self) -> tuple[str, str, int]:
        token = self.tokens[self.next]
        self.next = min(self.next + 1, len(self.tokens) - 1)
        return token

    def _accept(self, mark: str) -> bool:
        if self._peek()[1] == mark:
            self._take()
            return True
        return False


def _smallest_unit(layers: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """The shortest ``unit`` and ``repeats`` with ``unit * repeats == layers``."""
    for size in range(1, len(layers) + 1):
        if len(layers) % size == 0 and layers[:size] * (len(layers) // size) == layers:
            return layers[:size], len(layers) // size
    raise AssertionError("a sequence has at least one layer")
