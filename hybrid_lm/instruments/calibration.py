"""Mean output of every mixer on training documents: what mean ablation puts in its place."""

import numpy as np

from hybrid_lm.config import Config
from hybrid_lm.data.corpus import Corpus
from hybrid_lm.errors import UserError
from hybrid_lm.instruments.base import CannotRun, Subject
from hybrid_lm.instruments.bench import Session, anonymous
from hybrid_lm.instruments.cache import Arrays
from hybrid_lm.instruments.documents import Documents

DOCUMENTS = 8


def training_documents(corpus: Corpus, config: Config, *, length: int, limit: int) -> Documents:
    """Starts of documents that the model was trained on, of ``length`` or, where they are too
    short for it, of the rows of training.

    Raises:
        CannotRun: if there are not two of either length.
    """
    for tokens in (length, config.train.length):
        try:
            return Documents.choose(corpus, "train", length=tokens, limit=limit)
        except UserError as error:
            reason = str(error).split(";")[0]
    raise CannotRun(f"it needs training documents: {reason}")


def means(subject: Subject) -> np.ndarray:
    """Mean output of every mixer in the whole model -> means_ND, N layers; measured once.

    Raises:
        CannotRun: where there are no training documents.
    """
    documents = calibration_documents(subject)
    key = subject.key | {"calibration": documents.indices, "length": documents.length}

    def measure() -> Arrays:
        return {"means": mean_outputs(subject.session, documents)}

    return subject.cache.get("means", key, measure)["means"]


def calibration_documents(subject: Subject) -> Documents:
    """The documents that `means` are of."""
    bench = subject.bench
    length = bench.documents.length
    return training_documents(subject.corpus, bench.config, length=length, limit=DOCUMENTS)


def protocol(subject: Subject) -> str:
    """What the means are of."""
    documents = calibration_documents(subject)
    return f"the first {documents.length:,} tokens of {len(documents)} training documents"


def mean_outputs(session: Session, documents: Documents) -> np.ndarray:
    """Mean over all tokens of every mixer's output in the whole model -> means_ND, N layers."""
    bench, width = session.bench, session.bench.model.config.width
    means = np.zeros((len(bench.layers), len(documents), width), np.float32)
    for batch in session.batches(documents):
        x_BLD = session.embed(batch)
        for g, group in enumerate(bench.groups):
            own = session.params["groups"][group.name]
            x_BLD, mean_RUBD = bench.observe_group(own, x_BLD, group=anonymous(group))
            mean_NBD = np.asarray(mean_RUBD).reshape(-1, *mean_RUBD.shape[2:])
            means[np.ix_(bench.layers_of(g), batch.places)] = mean_NBD
    return means.mean(axis=1)
