"""Training rows: no token lost or repeated in an epoch, exact segments, exact resume."""

import json
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hybrid_lm.data import pipeline
from hybrid_lm.data.pipeline import train_batches
from hybrid_lm.errors import UserError

DOCUMENT_ID = 0
SPACING = 1000  # token of document d at position p: d * SPACING + p, and DOCUMENT_ID at p = 0


PACKING_ROWS = 6


@pytest.fixture(scope="module", autouse=True)
def few_rows_packed_together():
    with patch.object(pipeline, "PACKING_ROWS", PACKING_ROWS):
        yield


class MemorySplit:
    """Documents in memory whose tokens tell where they come from."""

    def __init__(self, lengths):
        self.lengths = np.array(lengths)

    def __len__(self):
        return len(self.lengths)

    def tokens(self, index, start, stop):
        positions = np.arange(start, stop, dtype=np.int32)
        return np.where(positions == 0, DOCUMENT_ID, (index + 1) * SPACING + positions).astype(
            np.int32
        )


def memory_corpus(lengths):
    split = MemorySplit(lengths)
    return SimpleNamespace(
        split={"train": split}.__getitem__, tokenizer=SimpleNamespace(document_id=DOCUMENT_ID)
    )


def batches(lengths, count, **options):
    defaults = dict(length=8, batch_size=2, pack=True, max_segments=3, seed=0)
    iterator = train_batches(memory_corpus(lengths), **defaults | options)
    taken = list(islice(iterator, count))
    iterator.close()
    return taken


def segments_of(batch):
    """(tokens, targets, positions) of every segment, after checking the row around them."""
    for row in range(len(batch["tokens_BL"])):
        tokens, targets, ids, positions = (
            batch[key][row] for key in ("tokens_BL", "targets_BL", "segment_ids_BL", "positions_BL")
        )
        used = np.count_nonzero(ids)
        assert np.all(ids[used:] == 0), "padding only on the right"
        assert not np.any([tokens[used:], targets[used:], positions[used:]])
        assert sorted(set(ids[:used])) == list(range(1, ids.max() + 1))
        assert np.all(np.diff(ids[:used]) >= 0)
        for segment in range(1, ids.max() + 1):
            inside = ids == segment
            yield tokens[inside], targets[inside], positions[inside]


def origin(tokens, targets):
    """(document, start) of a piece; the target of a lone first token tells its document."""
    known = [int(t) for t in (*tokens, *targets) if t != DOCUMENT_ID]
    document = known[0] // SPACING - 1
    start = 0 if tokens[0] == DOCUMENT_ID else int(tokens[0]) % SPACING
    return document, start


document_lengths = st.lists(st.integers(2, 40), min_size=1, max_size=12)


# Shrinking a failure would take minutes: every example starts a prefetching iterator.
@settings(max_examples=20, deadline=None, phases=[Phase.generate])
@given(
    lengths=document_lengths,
    length=st.integers(1, 12),
    max_segments=st.integers(1, 4),
    pack=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_token_is_fed_once_per_epoch_with_its_successor(
    lengths, length, max_segments, pack, seed
):
    # A batch of all the rows that are packed together holds consecutive pieces of the endless
    # stream, so after each batch no token may be more than one epoch ahead of another.
    batch_size = PACKING_ROWS
    options = dict(length=length, max_segments=max_segments, pack=pack, seed=seed)
    split = MemorySplit(lengths)
    fed = Counter({(d, p): 0 for d, n in enumerate(lengths) for p in range(n)})
    for batch in batches(lengths, 10, batch_size=batch_size, **options):
        assert all(a.shape == (batch_size, length) for a in batch.values())
        assert all(a.dtype == np.int32 for a in batch.values())
        assert batch["segment_ids_BL"].max() <= (max_segments if pack else 1)
        for tokens, targets, positions in segments_of(batch):
            document, start = origin(tokens, targets)
            stop = start + len(tokens)
            whole = np.append(split.tokens(document, 0, lengths[document]), DOCUMENT_ID)
            np.testing.assert_array_equal(tokens, whole[start:stop])
            np.testing.assert_array_equal(targets, whole[start + 1 : stop + 1])
            np.testing.assert_array_equal(positions, np.arange(len(tokens)))
            fed.update((document, p) for p in range(start, stop))
        assert max(fed.values()) - min(fed.values()) <= 1


def test_a_long_document_is_cut_elsewhere_each_epoch():
    first_lengths = {
        len(tokens)
        for batch in batches([40], 120, pack=False)
        for tokens, _, _ in segments_of(batch)
        if tokens[0] == DOCUMENT_ID
    }
    assert first_lengths == set(range(1, 9))


def test_short_documents_share_rows():
    for batch in batches([4] * 10, 5, length=8):
        assert np.all(batch["segment_ids_BL"] == [1] * 4 + [2] * 4)


@pytest.mark.parametrize("pack", [True, False])
def test_resume_through_json_is_exact_at_any_batch(pack):
    corpus = memory_corpus([5, 40, 17, 3, 9, 28, 2])
    options = dict(length=8, batch_size=4, pack=pack, max_segments=3, seed=7)
    iterator = train_batches(corpus, **options)
    states, expected = [json.dumps(iterator.get_state())], []
    for _ in range(15):  # several packings of PACKING_ROWS rows
        expected.append(next(iterator))
        states.append(json.dumps(iterator.get_state()))
    iterator.close()
    for start in (0, 1, 2, 3, 4, 5, 9, 14):
        resumed = train_batches(corpus, **options)
        resumed.set_state(json.loads(states[start]))
        for batch in expected[start : start + 3]:
            for key, array in next(resumed).items():
                np.testing.assert_array_equal(array, batch[key])
        resumed.close()


def test_seed_decides_the_order():
    def tokens(seed):
        return [b["tokens_BL"].tolist() for b in batches([20] * 8, 4, seed=seed)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)


def test_hosts_see_disjoint_documents_and_together_all():
    lengths = [5, 40, 17, 3, 9, 28, 2, 11]
    seen = [
        {
            origin(tokens, targets)[0]
            for batch in batches(lengths, 30, pack=False, host_index=host, host_count=3)
            for tokens, targets, _ in segments_of(batch)
        }
        for host in range(3)
    ]
    assert sorted(document for documents in seen for document in documents) == list(
        range(len(lengths))
    )


def test_fewer_documents_than_hosts_is_an_error():
    with pytest.raises(UserError, match="2 train documents cannot be shared by 3 hosts"):
        batches([5, 5], 1, host_count=3)


def test_an_unfinished_iterator_does_not_hold_up_exit():
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_data_pipeline import memory_corpus, train_batches
def main():
    corpus = memory_corpus([40] * 20)
    next(train_batches(corpus, length=8, batch_size=2, pack=True, max_segments=3, seed=0))
main()
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
