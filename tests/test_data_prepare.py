"""Preparation: right counts, whole caches or none, re-use, and the report's documents."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from hybrid_lm.data import prepare as preparation
from hybrid_lm.data.config import DataConfig
from hybrid_lm.data.corpus import Corpus, evaluation_documents
from hybrid_lm.data.prepare import prepare
from hybrid_lm.data.tokenizers import ByteTokenizer
from hybrid_lm.errors import UserError

TEXTS = [f"document {i}: " + "naïve café, " * i for i in range(12)]


@pytest.fixture
def config(tmp_path):
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"text": t, "title": t[:11]}) + "\n" for t in TEXTS))
    return DataConfig(source=str(source), cache_dir=str(tmp_path / "cache"))


def all_documents(corpus):
    return {
        split.names[i]: split.document(i)
        for split in map(corpus.split, corpus.manifest["splits"])
        for i in range(len(split))
    }


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_every_document_is_in_one_split_and_decodes_to_its_text(config, kind):
    corpus = prepare(
        DataConfig(
            source=config.source, cache_dir=config.cache_dir, tokenizer=kind, bpe_vocab_size=300
        )
    )
    documents = all_documents(corpus)
    assert sum(len(corpus.split(s)) for s in corpus.manifest["splits"]) == len(documents)
    start = corpus.tokenizer.document_id
    assert all(d[0] == start and np.sum(d == start) == 1 for d in documents.values())
    assert sorted(corpus.tokenizer.decode(d) for d in documents.values()) == sorted(TEXTS)
    assert {n: corpus.tokenizer.decode(d)[:11] for n, d in documents.items()} == {
        n: n for n in documents
    }


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_byte_counts_are_those_of_the_text_and_of_its_tokens(config, kind):
    corpus = prepare(
        DataConfig(
            source=config.source, cache_dir=config.cache_dir, tokenizer=kind, bpe_vocab_size=300
        )
    )
    for name, entry in corpus.manifest["splits"].items():
        split = corpus.split(name)
        for i in range(len(split)):
            tokens = split.document(i)
            assert tokens.dtype == np.int32
            assert len(tokens) == split.lengths[i]
            text_bytes = len(corpus.tokenizer.decode(tokens).encode())
            assert split.byte_counts[i] == text_bytes
            assert corpus.tokenizer.token_bytes_V[tokens].sum() == text_bytes
        assert entry["documents"] == len(split)
        assert entry["tokens"] == split.lengths.sum()
        assert entry["bytes"] == split.byte_counts.sum()
        stored = (corpus.directory / name / "tokens.bin").read_bytes()
        assert entry["sha256"] == hashlib.sha256(stored).hexdigest()


def test_a_prepared_corpus_is_opened_again_without_its_text(config, monkeypatch):
    first = prepare(config)
    monkeypatch.setattr(preparation, "load_documents", None)
    assert prepare(config).manifest == first.manifest


def test_changed_files_make_another_corpus(config, tmp_path):
    first = prepare(config)
    (tmp_path / "source.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in TEXTS[:5])
    )
    second = prepare(config)
    assert second.directory != first.directory
    assert sum(entry["documents"] for entry in second.manifest["splits"].values()) == 5
    assert Corpus(first.directory).manifest == first.manifest


def test_another_tokenizer_makes_another_corpus(config):
    bpe = DataConfig(
        source=config.source, cache_dir=config.cache_dir, tokenizer="bpe", bpe_vocab_size=300
    )
    assert prepare(bpe).directory != prepare(config).directory


def test_a_given_tokenizer_takes_the_place_of_the_configured_one(config):
    bpe = DataConfig(
        source=config.source, cache_dir=config.cache_dir, tokenizer="bpe", bpe_vocab_size=300
    )
    corpus = prepare(bpe, tokenizer=ByteTokenizer())
    assert corpus.vocab_size == 257
    assert corpus.directory != prepare(bpe).directory


def test_preparation_is_deterministic(config, tmp_path):
    first = prepare(config)
    second = prepare(DataConfig(source=config.source, cache_dir=str(tmp_path / "other")))
    assert second.manifest == first.manifest


def test_an_interrupted_preparation_leaves_nothing(config, tmp_path, monkeypatch):
    def interrupted(self, texts):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ByteTokenizer, "encode_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(config)
    assert list((tmp_path / "cache").iterdir()) == []
    assert len(all_documents(prepare(config))) == len(TEXTS)


def test_two_processes_preparing_at_once_both_get_the_corpus(config):
    command = [sys.executable, "-m", "hybrid_lm.data.prepare", "--source", config.source]
    processes = [
        subprocess.Popen(
            [*command, "--cache-dir", config.cache_dir], stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert outputs[0] == outputs[1]
    corpus = prepare(config)
    assert [p.name for p in corpus.directory.parent.iterdir()] == [corpus.directory.name]


def test_the_first_to_finish_wins(config, tmp_path):
    directory = prepare(config).directory
    late = tmp_path / "cache" / "late"
    late.mkdir()
    (late / "manifest.json").write_text("{}")
    preparation._publish(late, directory)
    assert len(all_documents(Corpus(directory))) == len(TEXTS)
    assert late.exists()


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest"])
def test_a_damaged_cache_is_refused_and_prepared_again(config, damage, caplog):
    corpus = prepare(config)
    if damage == "truncated":
        tokens = corpus.directory / "train" / "tokens.bin"
        tokens.write_bytes(tokens.read_bytes()[:-2])
    elif damage == "missing":
        (corpus.directory / "test" / "names.json").unlink()
    else:
        (corpus.directory / "manifest.json").write_text('{"format"')
    with pytest.raises(UserError, match=r"bytes instead of|not a whole prepared corpus"):
        Corpus(corpus.directory)
    again = prepare(config)
    assert "again" in caplog.text
    assert again.manifest == corpus.manifest
    assert len(all_documents(again)) == len(TEXTS)
    assert [p.name for p in corpus.directory.parent.iterdir()] == [corpus.directory.name]


def test_an_unwritable_cache_is_an_error(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cache_dir .* cannot be written"):
        prepare(DataConfig(source=config.source, cache_dir=str(tmp_path / "file")))


def test_unknown_split_lists_those_there_are(config):
    with pytest.raises(UserError, match="no split 'dev'; there are train, validation, test"):
        prepare(config).split("dev")


def evaluation_corpus(tmp_path, text_lengths):
    for split, lengths in (("train", [5]), ("validation", text_lengths), ("test", [5])):
        rows = [json.dumps({"text": "x" * (n - 1) + "y"}) for n in lengths]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    return prepare(DataConfig(source=str(tmp_path), cache_dir=str(tmp_path / "cache")))


def test_evaluation_takes_documents_with_enough_text(tmp_path):
    corpus = evaluation_corpus(tmp_path, [9, 10, 11, 50])
    chosen = evaluation_documents(corpus, "validation", length=10)
    assert [index for index, _, _ in chosen] == [1, 2, 3]
    for index, tokens_L, targets_L in chosen:
        document = corpus.split("validation").document(index)
        np.testing.assert_array_equal(tokens_L, document[:10])
        np.testing.assert_array_equal(targets_L, document[1:11])
        assert tokens_L[0] == corpus.tokenizer.document_id
        assert corpus.tokenizer.token_bytes_V[targets_L].sum() == 10
        assert tokens_L.dtype == targets_L.dtype == np.int32


def test_evaluation_limit_spaces_the_documents_evenly(tmp_path):
    corpus = evaluation_corpus(tmp_path, [20] * 9)
    chosen = evaluation_documents(corpus, "validation", length=10, limit=3)
    assert [index for index, _, _ in chosen] == [0, 4, 8]
    assert len(evaluation_documents(corpus, "validation", length=10, limit=20)) == 9


def test_too_few_long_documents_names_a_length_that_works(tmp_path):
    corpus = evaluation_corpus(tmp_path, [9, 40, 100])
    message = (
        r"has 1 document\(s\) of at least 64 tokens and needs 2; of its 3, the longest has 100; "
        "--evaluation.length 32 would work"
    )
    with pytest.raises(UserError, match=message):
        evaluation_documents(corpus, "validation", length=64)
    assert len(evaluation_documents(corpus, "validation", length=32)) == 2
