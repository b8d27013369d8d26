"""Knock-outs beside skipping: mixers replaced by their means, and random layers as the control.

Mean ablation of groups and random controls: arXiv 2603.22473.
"""

import dataclasses
import math
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np

from hybrid_lm.data.corpus import Corpus
from hybrid_lm.instruments import calibration
from hybrid_lm.instruments.base import Subject, differences, knockouts
from hybrid_lm.instruments.bench import Bench
from hybrid_lm.instruments.cache import Arrays
from hybrid_lm.octaves import octave_sums
from hybrid_lm.results import Control, Report


@dataclass(frozen=True)
class KnockoutInstrument:
    """Each group mean-ablated, and as many random layers of other groups skipped in its place.

    Arrays: ``mean`` [groups, documents, octaves]; per group g ``control_g`` [draws, documents,
    octaves] and ``layers_g`` [draws, layers].
    """

    draws: int = 5
    """Sets of random layers per group; fewer where there are not as many."""
    seed: int = 0
    name: ClassVar[str] = "knockout"
    caveat: ClassVar[str] = (
        "Mean ablation (mixers replaced by their mean output over training documents) stays nearer "
        "to what later layers were trained on than skipping; neither bounds a retrained model. The "
        "control skips random layers of other groups: a group matters as such where it costs more."
    )

    def passes(self, bench: Bench, corpus: Corpus) -> float:
        rows = bench.config.evaluation.batch_size
        draws = sum(len(self.drawn(bench, g)) for g in range(len(bench.groups)))
        return -(-len(bench.documents) // rows) * (1 + len(bench.groups) + draws)

    def drawn(self, bench: Bench, g: int) -> list[tuple[int, ...]]:
        """Different sets of layers, none of group ``g``; the same every time."""
        own = set(bench.layers_of(g))
        others = [layer for layer in range(len(bench.layers)) if layer not in own]
        size = min(len(own), len(others))
        if size == 0:
            return []
        if math.comb(len(others), size) <= self.draws:
            return list(combinations(others, size))
        rng, found = np.random.default_rng([self.seed, g]), set()
        while len(found) < self.draws:
            found.add(tuple(sorted(rng.choice(others, size, replace=False).tolist())))
        return sorted(found)

    def measure(self, subject: Subject) -> Arrays:
        bench, session = subject.bench, subject.session
        means_ND = calibration.means(subject)
        groups = range(len(bench.groups))
        draws = [self.drawn(bench, g) for g in groups]
        of_means = [bench.absences(bench.layers_of(g), means_ND) for g in groups]
        of_draws = [[bench.absences(layers) for layers in draws[g]] for g in groups]
        shape = subject.nats.shape
        mean = np.zeros((len(groups), *shape))
        control = [np.zeros((len(draws[g]), *shape)) for g in groups]
        for batch in session.batches():
            stream = [session.embed(batch)]
            stream += session.exits(stream[0], bench.whole)
            session.advance(1)
            for g in groups:
                where = f"with the means of group {bench.groups[g].name!r}"
                x_BLD = session.exits(stream[g], of_means[g], start=g)[-1]
                mean[g, batch.places] = octave_sums(session.nll_BL(x_BLD, batch, where))
                session.advance(1)
                for i, layers in enumerate(draws[g]):
                    first = bench.layers[min(layers)][0]
                    x_BLD = session.exits(stream[first], of_draws[g][i], start=first)[-1]
                    nll_BL = session.nll_BL(x_BLD, batch, f"without the layers {layers}")
                    control[g][i, batch.places] = octave_sums(nll_BL)
                    session.advance(1)
        arrays = {"mean": mean}
        for g in groups:
            arrays |= {f"control_{g}": control[g], f"layers_{g}": np.array(draws[g], int)}
        return arrays

    def extend(self, report: Report, arrays: Arrays, subject: Subject) -> Report:
        found = knockouts(arrays["mean"] - subject.nats, subject.bench)
        groups = [
            dataclasses.replace(
                group, knockout_mean=found[g], control=self._control(g, arrays, subject)
            )
            for g, group in enumerate(report.groups)
        ]
        seeds = report.seeds | {"control": self.seed}
        return dataclasses.replace(report, groups=tuple(groups), seeds=seeds)

    def _control(self, g: int, arrays: Arrays, subject: Subject) -> Control | None:
        draws = arrays[f"layers_{g}"]
        if not len(draws):
            return None
        delta = arrays[f"control_{g}"].mean(axis=0) - subject.nats
        return Control(
            draws.shape[1], tuple(map(tuple, draws.tolist())), *differences(delta, subject.bench)
        )

    def protocol(self, arrays: Arrays, subject: Subject) -> str:
        sets = []
        for g, group in enumerate(subject.bench.groups):
            draws = arrays[f"layers_{g}"]
            if not len(draws):
                sets.append(f"{group.name}: no other layers")
                continue
            size, own = draws.shape[1], len(subject.bench.layers_of(g))
            fewer = f" of its {own}, all that there are elsewhere" if size < own else ""
            sets.append(f"{group.name}: {len(draws)} x {size} layers{fewer}")
        return f"Means of {calibration.protocol(subject)}. Controls drawn for {'; '.join(sets)}."
