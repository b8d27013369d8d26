"""Runs the instruments that are asked for, one after the other, and puts their report together."""

import dataclasses
from collections.abc import Callable, Collection
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax

from hybrid_lm import config as configs
from hybrid_lm.checkpoint import sum_of_bits
from hybrid_lm.data.corpus import Corpus
from hybrid_lm.errors import UserError
from hybrid_lm.instruments import table
from hybrid_lm.instruments.base import CannotRun, Instrument, Subject
from hybrid_lm.instruments.bench import Bench, Session
from hybrid_lm.instruments.cache import Cache
from hybrid_lm.instruments.causality import CausalityInstrument
from hybrid_lm.instruments.field import FieldInstrument
from hybrid_lm.instruments.knockout import KnockoutInstrument
from hybrid_lm.instruments.lens import LensInstrument
from hybrid_lm.instruments.scoring import ScoringInstrument
from hybrid_lm.instruments.shapley import ShapleyInstrument
from hybrid_lm.instruments.token_classes import TokenClassesInstrument
from hybrid_lm.model import Params
from hybrid_lm.results import NOT_ASKED_FOR, NotRun, Report
from hybrid_lm.results import Instrument as Run

TABLE = "table"
"""Name of the part that always runs."""


INSTRUMENTS: tuple[Instrument, ...] = (
    CausalityInstrument(),
    KnockoutInstrument(),
    FieldInstrument(),
    ShapleyInstrument(),
    TokenClassesInstrument(),
    ScoringInstrument(),
    LensInstrument(),
)
"""In the order they run."""

_FORMAT = 1  # to be raised when an instrument measures something else under the same settings


def chosen(only: str | None, lens: bool) -> list[str]:
    """Names from a list separated by commas; None is all but the tuned lens.

    Raises:
        UserError: for a name that is none.
    """
    known = [TABLE, *(instrument.name for instrument in INSTRUMENTS)]
    if only is None:
        names = [name for name in known if name != LensInstrument.name]
    else:
        names = [name.strip() for name in only.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--only: no instrument {name!r}; there are {', '.join(known)}")
    return [*names, LensInstrument.name] if lens else names


def run(
    bench: Bench,
    corpus: Corpus,
    params: Params,
    *,
    step: int,
    names: Collection[str],
    directory: Path,
    kept: Path,
    on_progress: Callable[[str, float], None] = lambda name, share: None,
) -> Report:
    """The report of ``params`` with the instruments ``names``.

    Args:
        directory: keeps what was measured, so that a second call goes on where a first stopped.
        kept: keeps what belongs to the run and not to one evaluation.
        on_progress: ``on_progress(name, share)`` of the work done.

    Raises:
        UserError: if an NLL is not finite.
    """
    session = Session(bench, params, step=step)
    key, cache = _key(session, corpus), Cache(directory)
    not_run = [
        NotRun(instrument.name, NOT_ASKED_FOR)
        for instrument in INSTRUMENTS
        if instrument.name not in names
    ]
    planned: list[tuple[Instrument, dict[str, Any]]] = []
    passes = {TABLE: 0.0 if cache.holds(TABLE, key) else table.passes(bench)}
    for instrument in INSTRUMENTS:
        name, settings = instrument.name, key | {"settings": asdict(instrument)}
        if name in names:
            try:
                passes[name] = instrument.passes(bench, corpus)
            except CannotRun as reason:
                not_run.append(NotRun(name, str(reason)))
                continue
            planned.append((instrument, settings))
            if cache.holds(name, settings):
                passes[name] = 0.0
    progress = _Progress(passes, on_progress)
    session.advance = progress.advance
    with jax.set_mesh(bench.mesh):
        progress.begin(TABLE)
        measured = cache.get(TABLE, key, lambda: table.measure(session))
        subject = Subject(session, corpus, measured, key, cache, Cache(kept))
        report = table.report(session, corpus, measured)
        for instrument, settings in planned:
            progress.begin(instrument.name)
            try:
                measure = partial(instrument.measure, subject)
                arrays = cache.get(instrument.name, settings, measure)
            except CannotRun as reason:
                not_run.append(NotRun(instrument.name, str(reason)))
                continue
            report = instrument.extend(report, arrays, subject)
            ran = Run(instrument.name, instrument.caveat, instrument.protocol(arrays, subject))
            report = dataclasses.replace(report, instruments=(*report.instruments, ran))
    return dataclasses.replace(report, not_run=tuple(not_run))


def _key(session: Session, corpus: Corpus) -> dict[str, Any]:
    """What tells this evaluation's arrays from those of any other."""
    bench = session.bench
    documents, train = bench.documents, bench.config.train
    return {
        "format": _FORMAT,
        "checkpoint": f"step {session.step}, bits {int(sum_of_bits(session.params))}",
        "model": configs.to_json(bench.config)["model"],
        "splits": corpus.manifest["splits"],
        "documents": [documents.split, documents.length, documents.indices],
        "training_length": train.length,
        "dtype": train.dtype,
        "implementation": asdict(train.implementation),
    }


class _Progress:
    """Share of the work that is done; what was kept is no work, so that the time left is right."""

    def __init__(self, passes: dict[str, float], report: Callable[[str, float], None]):
        self._passes, self._report = passes, report
        self._total = sum(passes.values())
        self._done = self._end = 0.0
        self._name = TABLE

    def begin(self, name: str) -> None:
        self._name, self._done, self._end = name, self._end, self._end + self._passes[name]
        self.advance(0)

    def advance(self, passes: float) -> None:
        self._done = min(self._done + passes, self._end)
        self._report(self._name, self._done / self._total if self._total else 1.0)
