"""Endless batches of training rows: shuffled, sharded, cut, packed and prefetched by Grain."""

from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset, ThreadPrefetchIterDataset

from hybrid_lm.data.corpus import Corpus, Split
from hybrid_lm.errors import UserError

# Rows packed at once: more leave less padding, and take longer to fill again on resume.
PACKING_TOKENS = 2**20
PACKING_ROWS = 128


def train_batches(
    corpus: Corpus,
    *,
    length: int,
    batch_size: int,
    pack: bool,
    max_segments: int,
    seed: int,
    host_index: int = 0,
    host_count: int = 1,
) -> grain.DatasetIterator[dict[str, np.ndarray]]:
    """Endless iterator over tokens_BL, targets_BL, segment_ids_BL and positions_BL, all int32.

    Segments count from 1 in every row, 0 is padding (where targets are 0 too); positions restart
    with every segment. A document longer than ``length`` is cut into pieces at an offset drawn anew
    each epoch; every token is an input once per epoch, and its target is the token after it, or the
    document-start token at the document's end. ``batch_size`` is this host's.
    ``get_state()`` of the iterator is JSON-serialisable; ``set_state`` of it continues exactly.
    Raises `UserError` where there are fewer documents than hosts.
    """
    pieces = _Pieces(corpus, length=length, seed=seed, host_index=host_index, host_count=host_count)
    rows: grain.IterDataset[Any] = (
        grain.MapDataset.range(pieces.slots_per_epoch)
        .map_with_index(pieces)
        .shuffle(seed)
        .repeat()
        .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=64))
    )
    if pack:
        rows = FirstFitPackIterDataset(
            rows,
            length_struct={"tokens": length, "targets": length},
            num_packing_bins=max(1, min(PACKING_ROWS, PACKING_TOKENS // length)),
            max_sequences_per_bin=max_segments,
            seed=seed,
        ).map(_packed_row)
    else:
        rows = rows.map(_Pad(length))
    return iter(ThreadPrefetchIterDataset(rows.batch(batch_size), prefetch_buffer_size=2))


class _Pieces:
    """The pieces of this host's documents, by slot.

    A document has one slot for every piece it may have: how many of them it fills depends on where
    the epoch's random offset cuts it. Fixed slots let Grain shuffle pieces by index alone.
    """

    def __init__(self, corpus: Corpus, *, length: int, seed: int, host_index: int, host_count: int):
        self._split: Split = corpus.split("train")
        if len(self._split) < host_count:
            raise UserError(
                f"{len(self._split)} train documents cannot be shared by {host_count} hosts; "
                "use fewer hosts or a corpus with more documents"
            )
        self._length = length
        self._seed = seed
        self._end_L1 = np.array([corpus.tokenizer.document_id], np.int32)
        self._documents = np.arange(host_index, len(self._split), host_count)
        lengths = self._split.lengths[self._documents]
        slots = np.where(lengths > length, -(-lengths // length) + 1, 1)
        self._slot_ends = np.cumsum(slots)
        self.slots_per_epoch = int(self._slot_ends[-1])

    def __call__(self, index: int, slot: int) -> dict[str, np.ndarray] | None:
        """Inputs and targets of one slot, int32 of at most L; None where it is not filled."""
        epoch = index // self.slots_per_epoch
        which = int(np.searchsorted(self._slot_ends, slot, side="right"))
        document = int(self._documents[which])
        slots_before = int(self._slot_ends[which - 1]) if which else 0
        start, stop = self._bounds(epoch, document, slot - slots_before)
        if start >= stop:
            return None
        document_length = int(self._split.lengths[document])
        tokens = self._split.tokens(document, start, min(stop + 1, document_length))
        if stop == document_length:
            tokens = np.concatenate([tokens, self._end_L1])
        return {"tokens": tokens[:-1], "targets": tokens[1:]}

    def _bounds(self, epoch: int, document: int, piece: int) -> tuple[int, int]:
        document_length = int(self._split.lengths[document])
        if document_length <= self._length:
            return 0, document_length
        rng = np.random.default_rng((self._seed, epoch, document))
        first_length = int(rng.integers(1, self._length, endpoint=True))
        stop = first_length + piece * self._length
        start = 0 if piece == 0 else stop - self._length
        return start, min(stop, document_length)


def _packed_row(row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        "tokens_BL": row["tokens"],
        "targets_BL": row["targets"],
        "segment_ids_BL": row["tokens_segment_ids"],
        "positions_BL": row["tokens_positions"],
    }


class _Pad:
    """One piece as one row, padded on the right."""

    def __init__(self, length: int):
        self._length = length

    def __call__(self, piece: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        used = len(piece["tokens"])
        padding = (0, self._length - used)
        return {
            "tokens_BL": np.pad(piece["tokens"], padding),
            "targets_BL": np.pad(piece["targets"], padding),
            "segment_ids_BL": np.pad(np.ones(used, np.int32), padding),
            "positions_BL": np.pad(np.arange(used, dtype=np.int32), padding),
        }
