"""Tokenizers lose nothing and know how many bytes every id stands for."""

import builtins

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_lm.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    load_tokenizer,
    save_tokenizer,
)
from hybrid_lm.errors import UserError

SAMPLE = ["the cat sat on the mat, the dog sat on the log\n", "naïve café — 東京 🤖 <|endoftext|>"]
TOKENIZERS = {"bytes": ByteTokenizer(), "bpe": BPETokenizer.train(SAMPLE * 3, 300)}
any_text = st.text(st.characters(exclude_categories=["Cs"]))  # surrogates are not in UTF-8


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(text=any_text | st.sampled_from(SAMPLE))
def test_round_trip_is_lossless_and_counts_bytes(kind, text):
    tokenizer = TOKENIZERS[kind]
    tokens = tokenizer.encode(text)
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes_V[tokens].sum() == len(text.encode())
    assert tokenizer.document_id not in tokens
    np.testing.assert_array_equal(tokenizer.encode_batch(["x", text])[1], tokens)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_document_start_is_the_one_id_without_bytes(kind):
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.token_bytes_V.shape == (tokenizer.vocab_size,)
    assert np.flatnonzero(tokenizer.token_bytes_V == 0).tolist() == [tokenizer.document_id]
    assert tokenizer.decode([tokenizer.document_id, *tokenizer.encode("a")]) == "a"


def test_bpe_merges_within_its_vocabulary():
    tokenizer = TOKENIZERS["bpe"]
    assert 257 < tokenizer.vocab_size <= 300
    assert len(tokenizer.encode(SAMPLE[0])) < len(SAMPLE[0].encode())


def test_bpe_training_is_deterministic():
    assert BPETokenizer.train(SAMPLE * 3, 300).dumps() == TOKENIZERS["bpe"].dumps()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_saved_tokenizer_encodes_the_same(kind, tmp_path):
    save_tokenizer(TOKENIZERS[kind], tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.dumps() == TOKENIZERS[kind].dumps()
    for text in SAMPLE:
        np.testing.assert_array_equal(loaded.encode(text), TOKENIZERS[kind].encode(text))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_cut_utf8_decodes_to_a_replacement_character(kind):
    tokens = TOKENIZERS[kind].encode("ж")
    assert TOKENIZERS[kind].decode(tokens[:1]) == "\N{REPLACEMENT CHARACTER}"


def test_bpe_without_its_package_names_the_extra(monkeypatch):
    real_import = builtins.__import__

    def without_tokenizers(name, *args, **kwargs):
        if name == "tokenizers":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tokenizers)
    with pytest.raises(UserError, match=r"pip install 'hybrid_lm\[bpe\]'"):
        BPETokenizer.train(SAMPLE, 300)
