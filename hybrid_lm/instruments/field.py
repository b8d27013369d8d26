"""Receptive field: how far back a group must see.

One group's field is cut, and no other's (`hybrid_lm.instruments.cut`); windowing one group of
layers: arXiv 2606.15378.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybrid_lm.data.corpus import Corpus
from hybrid_lm.instruments.base import CannotRun, Subject, differences
from hybrid_lm.instruments.bench import Bench, anonymous
from hybrid_lm.instruments.cache import Arrays
from hybrid_lm.octaves import octave_sums
from hybrid_lm.results import Field, FieldWidth, Report


@dataclass(frozen=True)
class FieldInstrument:
    """NLL change by the width to which a group's field is cut.

    Arrays: ``nats`` [groups, widths, documents, octaves].
    """

    narrowest: int = 128
    """Tokens; each further width is twice the one before, below half of the document."""
    tolerance: float = 0.01
    """Nats per token in the last octave that the effective context may cost."""
    name: ClassVar[str] = "field"
    caveat: ClassVar[str] = (
        "Receptive field: of the group as a whole, from the residual stream that enters it; groups "
        "before it see everything, and may hand on what is far. Cut to w, a token sees the last w "
        "to 2w tokens, and the group meets starts of documents it was not trained on."
    )

    def widths(self, length: int) -> list[int]:
        """Cut to half of the document, a group sees all of it."""
        doubled = (self.narrowest << i for i in range(length.bit_length()))
        return [width for width in doubled if 2 * width < length]

    def passes(self, bench: Bench, corpus: Corpus) -> float:
        widths = self.widths(bench.documents.length)
        if not widths:
            raise CannotRun(f"documents of {bench.documents.length} tokens are too short to cut")
        rows, groups = bench.config.evaluation.batch_size, len(bench.groups)
        # A group runs on twice the tokens, and then those after it.
        of_width = sum((2 + groups - 1 - g) / groups for g in range(groups))
        return -(-len(bench.documents) // rows) * (1 + len(widths) * of_width)

    def measure(self, subject: Subject) -> Arrays:
        bench, session = subject.bench, subject.session
        widths, groups = self.widths(bench.documents.length), bench.groups
        nats = np.zeros((len(groups), len(widths), *subject.nats.shape))
        for batch in session.batches():
            stream = [session.embed(batch)]
            stream += session.exits(stream[0], bench.whole)
            session.advance(1)
            for g, group in enumerate(groups):
                own = session.params["groups"][group.name]
                for i, width in enumerate(widths):
                    x_BLD = bench.cut_group(own, stream[g], group=anonymous(group), width=width)
                    x_BLD = [x_BLD, *session.exits(x_BLD, bench.whole, start=g + 1)][-1]
                    where = f"with the field of group {group.name!r} cut to {width}"
                    nats[g, i, batch.places] = octave_sums(session.nll_BL(x_BLD, batch, where))
                    session.advance((1 + len(groups) - g) / len(groups))
        return {"nats": nats}

    def extend(self, report: Report, arrays: Arrays, subject: Subject) -> Report:
        widths = self.widths(subject.bench.documents.length)
        groups = []
        for group, nats in zip(report.groups, arrays["nats"], strict=True):
            cuts = tuple(
                FieldWidth(width, *differences(nats[i] - subject.nats, subject.bench))
                for i, width in enumerate(widths)
            )
            enough = [cut.width for cut in cuts if cut.buckets[-1].delta_nll <= self.tolerance]
            field = Field(cuts, min(enough, default=None), self.tolerance)
            groups.append(dataclasses.replace(group, field=field))
        return dataclasses.replace(report, groups=tuple(groups))

    def protocol(self, arrays: Arrays, subject: Subject) -> str:
        widths = ", ".join(map(str, self.widths(subject.bench.documents.length)))
        return (
            f"Cut to {widths} tokens; effective context: the smallest that costs at most "
            f"{self.tolerance} nats in the last octave."
        )
