"""Shapley values of the groups: the NLL they save together, shared out fairly."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np

from hybrid_lm.data.corpus import Corpus
from hybrid_lm.instruments import calibration
from hybrid_lm.instruments.base import CannotRun, Subject, differences
from hybrid_lm.instruments.bench import Batch, Bench
from hybrid_lm.instruments.cache import Arrays
from hybrid_lm.octaves import octave_means, octave_sums
from hybrid_lm.results import Report, Shapley, ShapleyTotal


@dataclass(frozen=True)
class ShapleyInstrument:
    """Exact over all 2^G coalitions of groups; absent groups are mean-ablated (Shapley 1953).

    Arrays: ``nats`` [coalitions, documents, octaves]; bit g of a coalition's place is group g.
    """

    largest: int = 6
    """Groups; with more, coalitions are too many."""
    name: ClassVar[str] = "shapley"
    caveat: ClassVar[str] = (
        "Shapley values share the NLL saved by all mixers together, against their means; what two "
        "groups can both do is halved between them, and coalitions without most groups are far "
        "from anything trained."
    )

    def passes(self, bench: Bench, corpus: Corpus) -> float:
        groups, rows = len(bench.groups), bench.config.evaluation.batch_size
        if groups > self.largest:
            raise CannotRun(
                f"{groups} groups have {2**groups:,} coalitions; at most {self.largest} groups"
            )
        return -(-len(bench.documents) // rows) * 2 * 2**groups / groups

    def measure(self, subject: Subject) -> Arrays:
        bench, session = subject.bench, subject.session
        means_ND, groups = calibration.means(subject), len(bench.groups)
        absent = bench.absences(range(len(bench.layers)), means_ND)
        nats = np.zeros((2**groups, *subject.nats.shape))

        def visit(g: int, x_BLD: jax.Array, coalition: int, batch: Batch) -> None:
            """All coalitions that agree with this one on the groups before ``g``."""
            if g == groups:
                names = [group.name for i, group in enumerate(bench.groups) if coalition >> i & 1]
                nll_BL = session.nll_BL(x_BLD, batch, f"with groups {names} alone")
                nats[coalition, batch.places] = octave_sums(nll_BL)
                return
            for absences, joined in ((bench.whole, 1 << g), (absent, 0)):
                visit(g + 1, session.group(g, x_BLD, absences[g]), coalition | joined, batch)
                session.advance(1 / groups)

        for batch in session.batches():
            visit(0, session.embed(batch), 0, batch)
        return {"nats": nats}

    def extend(self, report: Report, arrays: Arrays, subject: Subject) -> Report:
        nats = arrays["nats"]
        groups = []
        for g, group in enumerate(report.groups):
            found = differences(values(nats, g), subject.bench)
            groups.append(dataclasses.replace(group, shapley=Shapley(*found)))
        length = subject.bench.documents.length
        total, _ = octave_means(nats[0] - nats[-1], length, resamples=subject.bench.resamples)
        absent_nll = float(nats[0].sum() / subject.bench.documents.targets_BL.size)
        return dataclasses.replace(
            report,
            groups=tuple(groups),
            shapley=ShapleyTotal(absent_nll, total.nats, total.ci95),
        )

    def protocol(self, arrays: Arrays, subject: Subject) -> str:
        return f"All {len(arrays['nats'])} coalitions; means of {calibration.protocol(subject)}."


def values(nats: np.ndarray, player: int) -> np.ndarray:
    """``sum_S |S|! (G - |S| - 1)! / G! (nats(S) - nats(S + player))`` over the S without it.

    Args:
        nats: [2^G, ...], cost of every coalition; bit g of its place is player g.
    """
    players = (len(nats) - 1).bit_length()
    total = np.zeros(nats.shape[1:])
    for coalition in range(len(nats)):
        if not coalition >> player & 1:
            size = coalition.bit_count()
            weight = 1 / (players * math.comb(players - 1, size))
            total += weight * (nats[coalition] - nats[coalition | 1 << player])
    return total
