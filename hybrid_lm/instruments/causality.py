"""Causality: whether later tokens reach earlier ones in this model, not only in the laws.

The suffix test of `hybrid_lm.leaks.measures` on the trained parameters, group by group, so that a
leak is found where it happens.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_lm.data.corpus import Corpus
from hybrid_lm.instruments.base import CannotRun, Subject
from hybrid_lm.instruments.bench import Bench
from hybrid_lm.instruments.cache import Arrays
from hybrid_lm.results import Causality, CausalityGroup, Report


@dataclass(frozen=True)
class CausalityInstrument:
    """Changes of every exit when the tokens from the middle of the documents on are drawn anew.

    Arrays: ``changes`` [groups, 2], before and from the middle on; ``documents``, how many.
    """

    seed: int = 0
    """Of the tokens that are drawn."""
    name: ClassVar[str] = "causality"
    caveat: ClassVar[str] = (
        "Causality: no change at one position of a few documents proves nothing for others; the "
        "laws test every mixer at all positions. Mixers that convolve by FFT pass on rounding."
    )

    def position(self, length: int) -> int:
        """The first token drawn anew: odd, so that it starts no chunk."""
        return length // 2 - 1 + length // 2 % 2

    def passes(self, bench: Bench, corpus: Corpus) -> float:
        if self.position(bench.documents.length) < 1:
            raise CannotRun(f"documents of {bench.documents.length} tokens have no middle")
        return 2.0

    def measure(self, subject: Subject) -> Arrays:
        bench, session = subject.bench, subject.session
        position = self.position(bench.documents.length)
        places = next(bench.documents.batches(bench.config.evaluation.batch_size))
        tokens_BL = bench.documents.tokens_BL.copy()
        drawn = np.random.default_rng(self.seed).integers(
            bench.model.vocab_size, size=tokens_BL[:, position:].shape
        )
        tokens_BL[:, position:] = drawn
        changed = dataclasses.replace(bench.documents, tokens_BL=tokens_BL)
        batches = [
            bench.put(documents, places, 0, documents.length)
            for documents in (bench.documents, changed)
        ]
        x_BLD, other_BLD = map(session.embed, batches)
        changes = np.zeros((len(bench.groups), 2))
        for g, absence in enumerate(bench.whole):
            x_BLD = session.group(g, x_BLD, absence)
            other_BLD = session.group(g, other_BLD, absence)
            changes[g] = jax.device_get(_changes(x_BLD, other_BLD, position))
            # What leaked is not handed on: the next group's own leaks are to be seen.
            other_BLD = jnp.concatenate([x_BLD[:, :position], other_BLD[:, position:]], axis=1)
        session.advance(2)
        return {"changes": changes, "documents": np.array(len(set(places.tolist())))}

    def extend(self, report: Report, arrays: Arrays, subject: Subject) -> Report:
        groups = tuple(
            CausalityGroup(group.name, *changes)
            for group, changes in zip(report.groups, arrays["changes"].tolist(), strict=True)
        )
        position = self.position(subject.bench.documents.length)
        found = Causality(position, int(arrays["documents"]), groups)
        return dataclasses.replace(report, causality=found)

    def protocol(self, arrays: Arrays, subject: Subject) -> str:
        position = self.position(subject.bench.documents.length)
        return (
            f"Tokens from {position:,} on drawn anew in {arrays['documents']} documents; largest "
            "change of what leaves a group, over its root mean square."
        )


@jax.jit(static_argnames="position")
def _changes(x_BLD: jax.Array, other_BLD: jax.Array, position: int) -> jax.Array:
    """Largest change before and from ``position`` on, over the root mean square: [2]."""
    x_BLD, other_BLD = x_BLD.astype(jnp.float32), other_BLD.astype(jnp.float32)
    change_BLD = jnp.abs(other_BLD - x_BLD)
    parts = [change_BLD[:, :position].max(), change_BLD[:, position:].max()]
    return jnp.stack(parts) / jnp.sqrt(jnp.mean(x_BLD**2))
