"""The documents that are scored, and their rows in batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hybrid_lm.data.corpus import Corpus, evaluation_documents


@dataclass(frozen=True)
class Documents:
    """The first ``length`` tokens of documents of a split, each alone in its row.

    Attributes:
        split: they are of.
        indices: place of each document in its split.
        names: of the documents.
        tokens_BL: int32, what the model reads.
        targets_BL: int32, what it is to predict.
    """

    split: str
    indices: tuple[int, ...]
    names: tuple[str, ...]
    tokens_BL: np.ndarray
    targets_BL: np.ndarray

    @classmethod
    def choose(cls, corpus: Corpus, split: str, *, length: int, limit: int | None) -> "Documents":
        """At most ``limit`` documents that are long enough, evenly spaced over the split.

        Raises:
            UserError: if fewer than two are.
        """
        chosen = evaluation_documents(corpus, split, length=length, limit=limit)
        indices, tokens, targets = zip(*chosen, strict=True)
        names = corpus.split(split).names
        return cls(
            split,
            indices,
            tuple(names[index] for index in indices),
            np.stack(tokens),
            np.stack(targets),
        )

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def length(self) -> int:
        return self.tokens_BL.shape[1]

    def bytes_B(self, corpus: Corpus) -> np.ndarray:
        """UTF-8 bytes of the targets of every document."""
        return corpus.tokenizer.token_bytes_V[self.targets_BL].sum(axis=1)

    def batches(self, rows: int) -> Iterator[np.ndarray]:
        """Places of the documents, ``rows`` at a time; the last one fills up the last batch."""
        for first in range(0, len(self), rows):
            yield np.minimum(np.arange(first, first + rows), len(self) - 1)
