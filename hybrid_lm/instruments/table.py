"""The part that always runs: NLL of the model and of every exit, and each group skipped.

Arrays: ``nll`` [documents, length] of the whole model and ``without`` [groups, documents, length]
of the model without each group, float32; ``exits`` [1 + groups, documents, octaves], sums of the
NLL read off the embedding and off the residual stream that leaves each group.
"""

import math
from datetime import UTC, datetime
from importlib import metadata

import jax
import numpy as np

from hybrid_lm.data.corpus import Corpus
from hybrid_lm.instruments.base import FLIPS, knockouts
from hybrid_lm.instruments.bench import LARGEST_NLL, Bench, Session
from hybrid_lm.instruments.cache import Arrays
from hybrid_lm.model import count
from hybrid_lm.octaves import octave_means, octave_sums, octaves
from hybrid_lm.results import Bucket, ExitBucket, GroupReport, Report
from hybrid_lm.statistics import ci95, interval_method

_LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "scipy")


def passes(bench: Bench) -> int:
    """Calls of ``advance``: the whole model and every group, for every batch."""
    rows = bench.config.evaluation.batch_size
    return -(-len(bench.documents) // rows) * (1 + len(bench.groups))


def measure(session: Session) -> Arrays:
    """See the module's docstring.

    Raises:
        UserError: if an NLL is not finite, naming the group and the document.
    """
    bench = session.bench
    names = [group.name for group in bench.groups]
    shape = (len(names), *bench.documents.tokens_BL.shape)
    nll, without = np.zeros(shape[1:], np.float32), np.zeros(shape, np.float32)
    exits = np.zeros((1 + len(names), shape[1], len(octaves(bench.documents.length))))
    absences = [bench.absences(bench.layers_of(g)) for g in range(len(names))]
    for batch in session.batches():
        stream = [session.embed(batch)]
        stream += session.exits(stream[0], bench.whole)
        for g, name in enumerate(names):
            nll_BL = session.nll_BL(stream[g + 1], batch, f"at the exit of group {name!r}")
            exits[g + 1, batch.places] = octave_sums(nll_BL)
            nll[batch.places] = nll_BL
        entry_BL = session.nll_BL(stream[0], batch, "before the first group")
        exits[0, batch.places] = octave_sums(entry_BL)
        for g, name in enumerate(names):
            session.advance(1)
            last_BLD = session.exits(stream[g], absences[g], start=g)[-1]
            without[g, batch.places] = session.nll_BL(last_BLD, batch, f"without group {name!r}")
        session.advance(1)
    return {"nll": nll, "exits": exits, "without": without}


def report(session: Session, corpus: Corpus, arrays: Arrays) -> Report:
    """The report of what `measure` returned."""
    bench, params = session.bench, session.params
    resamples, nats = bench.resamples, octave_sums(arrays["nll"])
    config, documents = bench.config, bench.documents
    spans, tokens = octaves(documents.length), documents.targets_BL.size
    total, buckets = octave_means(nats, documents.length, resamples=resamples)
    bytes_d = documents.bytes_B(corpus)
    bits_d = nats.sum(axis=1) / np.log(2)
    bits_ci95 = ci95(bits_d[:, None], bytes_d[:, None], resamples=resamples)
    groups = _groups(session, arrays)
    return Report(
        documents=len(documents),
        tokens=tokens,
        bytes=int(bytes_d.sum()),
        nll=total.nats,
        nll_ci95=total.ci95,
        perplexity=math.exp(total.nats),
        perplexity_ci95=(_exp(total.ci95[0]), _exp(total.ci95[1])),
        bits_per_byte=float(bits_d.sum() / bytes_d.sum()),
        bits_per_byte_ci95=(float(bits_ci95[0, 0]), float(bits_ci95[0, 1])),
        buckets=tuple(
            Bucket(start, end, *bucket, beyond_training=end > config.train.length)
            for (start, end), bucket in zip(spans, buckets, strict=True)
        ),
        groups=groups,
        split=documents.split,
        length=documents.length,
        training_length=config.train.length,
        step=session.step,
        params=count(params),
        flops_per_token=bench.flops_per_token,
        state_bytes=sum(group.state_bytes for group in groups),
        dtype=config.train.dtype,
        device=f"{bench.mesh.size} x {bench.mesh.devices.flat[0].device_kind}",
        jax_version=jax.__version__,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        interval_method=interval_method(len(documents)),
        resamples=resamples,
        corpus=_corpus(corpus, documents.split),
        document_indices=documents.indices,
        document_names=documents.names,
        document_nats=tuple(map(tuple, nats.tolist())),
        document_bytes=tuple(bytes_d.tolist()),
        mixers=bench.mixers,
        seeds={"training": config.train.seed, "resampling": 0},
        versions={name: metadata.version(name) for name in _LIBRARIES},
        entry_nll=float(arrays["exits"][0].sum() / tokens),
        correction=f"max-T over all cells of the heat map, {FLIPS:,} sign flips of documents",
    )


def _groups(session: Session, arrays: Arrays) -> tuple[GroupReport, ...]:
    bench, nats = session.bench, octave_sums(arrays["nll"])
    exits, spans = arrays["exits"], octaves(bench.documents.length)
    exit_nll = (exits.sum(axis=2) / bench.documents.length).mean(axis=1)
    found = knockouts(octave_sums(arrays["without"]) - nats, bench)
    reports = []
    for g, (group, cost) in enumerate(zip(bench.groups, bench.costs, strict=True)):
        reports.append(
            GroupReport(
                name=group.name,
                pattern=group.pattern,
                layers=group.layers,
                params=count(session.params["groups"][group.name]),
                flops_per_token=cost.flops_per_token,
                state_bytes=cost.state_bytes,
                exit_nll=float(exit_nll[g + 1]),
                exit_perplexity=math.exp(exit_nll[g + 1]),
                exit_buckets=tuple(
                    ExitBucket(start, end, float(exits[g + 1, :, i].mean() / (end - start)))
                    for i, (start, end) in enumerate(spans)
                ),
                knockout=found[g],
                exit_gain=float(exit_nll[g] - exit_nll[g + 1]),
            )
        )
    return tuple(reports)


def _corpus(corpus: Corpus, split: str) -> dict[str, str | int]:
    manifest = corpus.manifest
    return {
        "source": manifest["source"]["name"],
        "fingerprint": manifest["source"]["fingerprint"],
        "tokenizer": manifest["tokenizer"]["kind"],
        "vocab_size": manifest["tokenizer"]["vocab_size"],
        "tokenizer_sha256": manifest["tokenizer"]["sha256"],
        "split_sha256": manifest["splits"][split]["sha256"],
    }


def _exp(nats: float) -> float:
    """Of an end of an interval, which with few documents may lie beyond any real perplexity."""
    return math.exp(min(nats, LARGEST_NLL))
