"""Tuned lens: what an affine map, trained for it, can read off every boundary between groups.

Belrose et al. 2023 (arXiv 2303.08112), trained on the tokens to predict instead of the model's own
predictions, so that it says how much is decodable there.
"""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hybrid_lm.data.corpus import Corpus
from hybrid_lm.instruments.base import Subject
from hybrid_lm.instruments.bench import Batch, Bench, Session
from hybrid_lm.instruments.cache import Arrays
from hybrid_lm.instruments.calibration import training_documents
from hybrid_lm.instruments.documents import Documents
from hybrid_lm.loss import token_nll
from hybrid_lm.model import Params
from hybrid_lm.octaves import octave_sums, octaves
from hybrid_lm.results import ExitBucket, Lens, Report

Maps = dict[str, jax.Array]
"""``weight`` [boundaries, D, D] and ``bias`` [boundaries, D] of ``x + x weight + bias``."""


@dataclass(frozen=True)
class LensInstrument:
    """Affine maps at the entry of every group, trained with Adam on training documents.

    The exit of the last group needs none: it is what the model predicts from.
    Arrays: ``nats`` [groups, documents, octaves], at the entry of every group.
    """

    steps: int = 250
    documents: int = 64
    """Of the training split, over and over."""
    learning_rate: float = 0.04
    """At the start, times the square root of the width; it falls linearly to 0.

    On the quickstart (width 64), 0.008 left the maps 0.02 to 0.13 nats worse.
    """
    name: ClassVar[str] = "lens"
    caveat: ClassVar[str] = (
        "Tuned lens: what a trained affine map can decode at the exit of a group, not what the "
        "group causes."
    )

    def passes(self, bench: Bench, corpus: Corpus) -> float:
        training_documents(corpus, bench.config, length=bench.documents.length, limit=2)
        # A step reads all boundaries forward and backward.
        rows = bench.config.evaluation.batch_size
        return 2 * self.steps + -(-len(bench.documents) // rows)

    def measure(self, subject: Subject) -> Arrays:
        session = subject.session
        length = subject.bench.documents.length
        of_run = {name: subject.key[name] for name in ("checkpoint", "splits")}
        key = asdict(self) | of_run | {"length": length}
        maps = subject.kept.get("tuned_lens", key, lambda: self._trained(subject))
        nats = np.zeros((len(subject.bench.groups), *subject.nats.shape))
        for batch in session.batches():
            for g, x_BLD in enumerate(_boundaries(session, batch)):
                mapped_BLD = _mapped(maps, g, x_BLD)
                where = f"through the lens before group {subject.bench.groups[g].name!r}"
                nats[g, batch.places] = octave_sums(session.nll_BL(mapped_BLD, batch, where))
            session.advance(1)
        return {"nats": nats}

    def _trained(self, subject: Subject) -> Arrays:
        bench, session = subject.bench, subject.session
        documents = training_documents(
            subject.corpus, bench.config, length=bench.documents.length, limit=self.documents
        )
        boundaries, width = len(bench.groups), bench.model.config.width
        rate = self.learning_rate / width**0.5
        optimizer = optax.adam(optax.linear_schedule(rate, 0.0, self.steps))
        maps = {
            "weight": jnp.zeros((boundaries, width, width)),
            "bias": jnp.zeros((boundaries, width)),
        }
        state = optimizer.init(maps)

        def loss(maps: Maps, params: Params, stream: list[jax.Array], targets_BL: jax.Array):
            losses = []
            for g, x_BLD in enumerate(stream):
                readout_BLD = bench.model.readout(params, _mapped(maps, g, x_BLD))
                losses.append(token_nll(readout_BLD, params["embedding"], targets_BL).mean())
            return sum(losses)

        @jax.jit
        def step(maps, state, params, stream, targets_BL):
            updates, state = optimizer.update(
                jax.grad(loss)(maps, params, stream, targets_BL), state
            )
            return optax.apply_updates(maps, updates), state

        batches = _forever(session, documents)
        for _ in range(self.steps):
            batch = next(batches)
            stream = _boundaries(session, batch)
            maps, state = step(maps, state, session.params, stream, batch.targets_BL)
            # Programs of several devices that do not wait for each other can lock up on the CPU.
            jax.block_until_ready(maps)
            session.advance(2)
        return {name: np.asarray(value) for name, value in maps.items()}

    def extend(self, report: Report, arrays: Arrays, subject: Subject) -> Report:
        tokens = subject.bench.documents.targets_BL.size
        spans = octaves(subject.bench.documents.length)
        nats = np.concatenate([arrays["nats"], subject.nats[None]])
        nll = (nats.sum(axis=(1, 2)) / tokens).tolist()
        groups = []
        for g, group in enumerate(report.groups):
            buckets = tuple(
                ExitBucket(start, end, float(nats[g + 1, :, i].mean() / (end - start)))
                for i, (start, end) in enumerate(spans)
            )
            lens = Lens(nll[g + 1], math.exp(nll[g + 1]), buckets, nll[g] - nll[g + 1])
            groups.append(dataclasses.replace(group, lens=lens))
        return dataclasses.replace(report, groups=tuple(groups), lens_entry_nll=nll[0])

    def protocol(self, arrays: Arrays, subject: Subject) -> str:
        return (
            f"{self.steps} steps of Adam from the identity, learning rate "
            f"{self.learning_rate:g} / sqrt(width) falling to 0, on at most {self.documents} "
            "training documents."
        )


def _boundaries(session: Session, batch: Batch) -> list[jax.Array]:
    """The residual stream as it enters each group."""
    x_BLD = session.embed(batch)
    return [x_BLD, *session.exits(x_BLD, session.bench.whole)[:-1]]


def _mapped(maps: Maps | Arrays, boundary: int, x_BLD: jax.Array) -> jax.Array:
    wide_BLD = x_BLD.astype(jnp.float32)
    moved_BLD = wide_BLD @ maps["weight"][boundary] + maps["bias"][boundary]
    return (wide_BLD + moved_BLD).astype(x_BLD.dtype)


def _forever(session: Session, documents: Documents) -> Iterator[Batch]:
    while True:
        yield from session.batches(documents)
