"""The same documents scored in one pass, by a sliding window and as a stream, beyond training."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from hybrid_lm.data.corpus import Corpus
from hybrid_lm.errors import UserError
from hybrid_lm.instruments.base import CannotRun, Subject
from hybrid_lm.instruments.bench import Bench, Session
from hybrid_lm.instruments.cache import Arrays
from hybrid_lm.instruments.documents import Documents
from hybrid_lm.mixers import Attention
from hybrid_lm.model import Model
from hybrid_lm.octaves import octave_means, octave_sums, octaves
from hybrid_lm.results import Bucket, Report, Scoring, ScoringMode
from hybrid_lm.statistics import ci95

MODES: tuple[ScoringMode, ...] = ("full", "sliding", "streaming")


@dataclass(frozen=True)
class ScoringInstrument:
    """Modes full, sliding and streaming at multiples of the training length T.

    Arrays: one per mode, NLL [documents, length] in float32.
    """

    multiples: tuple[int, ...] = (1, 2, 4)
    """Lengths; those that fewer than two documents reach are left out."""
    name: ClassVar[str] = "scoring"
    caveat: ClassVar[str] = (
        "Scoring modes: a sliding window gives most tokens less context than one pass and restarts "
        "every state; streaming keeps states and limits attention without a window to the training "
        "length. Numbers of different modes are of different models in use, not of one."
    )

    def documents(self, bench: Bench, corpus: Corpus) -> Documents:
        """As many as the bench has, of the greatest length that two reach."""
        length = bench.config.train.length
        for multiple in sorted(self.multiples, reverse=True):
            if multiple == 1:
                break
            try:
                return Documents.choose(
                    corpus,
                    bench.documents.split,
                    length=multiple * length,
                    limit=len(bench.documents),
                )
            except UserError:
                continue
        raise CannotRun(f"fewer than 2 documents are longer than twice the {length} of training")

    def passes(self, bench: Bench, corpus: Corpus) -> float:
        documents, window = self.documents(bench, corpus), bench.config.train.length
        batches = -(-len(documents) // bench.config.evaluation.batch_size)
        windows = len(list(_windows(documents.length, window)))
        return batches * (windows + 2 * documents.length / window) * window / bench.documents.length

    def measure(self, subject: Subject) -> Arrays:
        bench, session = subject.bench, subject.session
        documents, window = self.documents(bench, subject.corpus), bench.config.train.length
        arrays = {mode: np.zeros(documents.tokens_BL.shape, np.float32) for mode in MODES}
        streaming = streaming_model(bench.model, window)
        for places in documents.batches(bench.config.evaluation.batch_size):
            batch = bench.put(documents, places, 0, documents.length)
            x_BLD = session.exits(session.embed(batch), bench.whole)[-1]
            arrays["full"][places] = session.nll_BL(x_BLD, batch, "in one pass")
            session.advance(documents.length / bench.documents.length)
            for start, scored in _windows(documents.length, window):
                batch = bench.put(documents, places, start, start + window)
                x_BLD = session.exits(session.embed(batch), bench.whole)[-1]
                nll_BL = session.nll_BL(x_BLD, batch, f"of a window from token {start} on")
                arrays["sliding"][places, scored : start + window] = nll_BL[:, scored - start :]
                session.advance(window / bench.documents.length)
            for start, nll_BL in self._stream(session, streaming, documents, places):
                arrays["streaming"][places, start : start + window] = nll_BL
                session.advance(window / bench.documents.length)
        return arrays

    def _stream(
        self, session: Session, model: Model, documents: Documents, places: np.ndarray
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Start and NLL of every piece of a training row's length."""
        bench, piece = session.bench, session.bench.config.train.length
        state = model.initial_state(len(places), bench.dtype, documents.length)
        for start in range(0, documents.length, piece):
            batch = bench.put(documents, places, start, start + piece)
            x_BLD, state = bench.stream(
                session.params,
                batch.tokens_BL,
                jnp.int32(start),
                state,
                model=model,
                capacity=documents.length,
            )
            yield start, session.nll_BL(x_BLD, batch, f"of the stream from token {start} on")

    def extend(self, report: Report, arrays: Arrays, subject: Subject) -> Report:
        documents = self.documents(subject.bench, subject.corpus)
        window = subject.bench.config.train.length
        bytes_V = subject.corpus.tokenizer.token_bytes_V
        found = []
        for multiple in self.multiples:
            length = multiple * window
            if length > documents.length:
                continue
            bytes_d = bytes_V[documents.targets_BL[:, :length]].sum(axis=1)
            # Of a window and of a stream, the first piece is one pass.
            for mode in MODES if multiple > 1 else MODES[:1]:
                nats = octave_sums(arrays[mode][:, :length])
                delta = nats - octave_sums(arrays["full"][:, :length])
                found.append(_scoring(mode, length, window, nats, delta, bytes_d, subject))
        return dataclasses.replace(report, scoring=tuple(found))

    def protocol(self, arrays: Arrays, subject: Subject) -> str:
        documents = self.documents(subject.bench, subject.corpus)
        window = subject.bench.config.train.length
        model = streaming_model(subject.bench.model, window)
        growing = [
            key
            for key, mixer in model.config.mixers.items()
            if any(key in group.unit for group in model.plan.groups)
            and mixer.cost(model.config.width, 4 * window).state_bytes
            > mixer.cost(model.config.width, 2 * window).state_bytes
        ]
        states = f"; states of {', '.join(growing)} grow with the document" if growing else ""
        return (
            f"{len(documents)} documents of {documents.length:,} tokens for all modes; windows of "
            f"{window:,}, moved by {window // 4:,}, start without a document-start token; streamed "
            f"in pieces of {window:,}{states}."
        )


def _windows(length: int, window: int) -> Iterator[tuple[int, int]]:
    """Start of every window, and from where on it is scored."""
    stride, scored = max(window // 4, 1), 0
    for start in range(0, length - window + stride, stride):
        start = min(start, length - window)
        yield start, scored
        scored = start + window


def streaming_model(model: Model, window: int) -> Model:
    """The same model with attention over the whole document limited to ``window`` tokens."""
    mixers = {
        key: dataclasses.replace(mixer, window=window)
        if isinstance(mixer, Attention) and mixer.window is None
        else mixer
        for key, mixer in model.config.mixers.items()
    }
    return Model(dataclasses.replace(model.config, mixers=mixers), model.vocab_size)


def _scoring(
    mode: ScoringMode,
    length: int,
    window: int,
    nats: np.ndarray,
    delta: np.ndarray,
    bytes_d: np.ndarray,
    subject: Subject,
) -> Scoring:
    resamples = subject.bench.resamples
    total, means = octave_means(nats, length, resamples=resamples)
    difference, _ = octave_means(delta, length, resamples=resamples)
    bits_d = nats.sum(axis=1) / np.log(2)
    (bits_ci95,) = ci95(bits_d[:, None], bytes_d[:, None], resamples=resamples).tolist()
    return Scoring(
        mode=mode,
        length=length,
        window=None if mode == "full" else window,
        documents=len(nats),
        nll=total.nats,
        ci95=total.ci95,
        bits_per_byte=float(bits_d.sum() / bytes_d.sum()),
        bits_per_byte_ci95=tuple(bits_ci95),
        delta_nll=difference.nats,
        delta_ci95=difference.ci95,
        buckets=tuple(
            Bucket(start, end, *mean, beyond_training=end > window)
            for (start, end), mean in zip(octaves(length), means, strict=True)
        ),
    )
