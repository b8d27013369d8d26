"""Training loss against tokens and against time, and where runs stand at equal budgets."""

import math
from dataclasses import dataclass

import numpy as np

from hybrid_lm import metrics
from hybrid_lm.errors import UserError
from hybrid_lm.run_dir import RunDir

FRACTIONS = (0.125, 0.25, 0.5, 1.0)
"""Budgets, of the most that all runs have spent."""
WINDOW = 0.1
"""Training loss at a budget is the mean over the logged steps of its last tenth."""


@dataclass(frozen=True)
class Curve:
    """What a run had spent, and its training loss, at every line of ``metrics.jsonl``."""

    tokens: np.ndarray
    """[lines], padding left out."""
    seconds: np.ndarray
    """[lines], of training steps alone: no compilation, checkpoints or evaluations."""
    bits_per_byte: np.ndarray
    """[lines], of one step's batch each."""
    tokens_per_s: float
    """Median of the lines."""
    mfu: float
    """Median of the lines."""


@dataclass(frozen=True)
class LossPoint:
    """Mean training loss over neighbouring lines of ``metrics.jsonl``, and what the last of them
    had spent."""

    tokens: int
    seconds: float
    bits_per_byte: float


@dataclass(frozen=True)
class Budget:
    """The runs at an equal budget."""

    amount: float
    """Tokens, or seconds."""
    bits_per_byte: tuple[float, ...]
    """Training loss of every run, in the order of the runs."""


def curve(run_dir: RunDir, *, until: int) -> Curve:
    """The curve of a run to step ``until``; raises `UserError` if ``metrics.jsonl`` lacks it."""
    rows = [row for row in metrics.read(run_dir.metrics) if row.step <= until]
    if not rows:
        raise UserError(f"{run_dir.metrics} has no line up to step {until}")
    steps = np.diff([row.step for row in rows], prepend=0)
    text_tokens_per_byte = _text_tokens_per_byte(run_dir)
    return Curve(
        tokens=np.array([row.tokens for row in rows]),
        seconds=np.cumsum(steps * np.array([row.step_ms for row in rows])) / 1e3,
        bits_per_byte=np.array([row.loss for row in rows]) / math.log(2) * text_tokens_per_byte,
        tokens_per_s=float(np.median([row.tokens_per_s for row in rows])),
        mfu=float(np.median([row.mfu for row in rows])),
    )


def loss_points(curve: Curve, most: int = 50) -> tuple[LossPoint, ...]:
    """The curve in at most so many points."""
    lines = np.arange(len(curve.tokens))
    return tuple(
        LossPoint(
            int(curve.tokens[part[-1]]),
            float(curve.seconds[part[-1]]),
            float(curve.bits_per_byte[part].mean()),
        )
        for part in np.array_split(lines, min(most, len(lines)))
    )


def iso_tokens(curves: list[Curve]) -> tuple[Budget, ...]:
    """The runs after equal numbers of tokens."""
    return _at_budgets([(c.tokens, c.bits_per_byte) for c in curves])


def iso_time(curves: list[Curve]) -> tuple[Budget, ...]:
    """The runs after equal seconds of training."""
    return _at_budgets([(c.seconds, c.bits_per_byte) for c in curves])


def _at_budgets(curves: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Budget, ...]:
    most = min(float(spent[-1]) for spent, _ in curves)
    return tuple(
        Budget(
            amount=most * fraction,
            bits_per_byte=tuple(_at(spent, bits, most * fraction) for spent, bits in curves),
        )
        for fraction in FRACTIONS
        if all(spent[0] <= most * fraction for spent, _ in curves)
    )


def _at(spent: np.ndarray, bits: np.ndarray, budget: float) -> float:
    """Mean of the lines in the last `WINDOW` of a budget, or else the last line before it."""
    budget *= 1 + 1e-9  # the last line of a run is in its own budget
    inside = (spent > budget * (1 - WINDOW)) & (spent <= budget)
    return float(bits[inside].mean() if inside.any() else bits[spent <= budget][-1])


def _text_tokens_per_byte(run_dir: RunDir) -> float:
    """Of the training split, without the tokens that start documents."""
    train = run_dir.corpus_manifest()["splits"]["train"]
    return (train["tokens"] - train["documents"]) / train["bytes"]
