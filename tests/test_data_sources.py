"""Sources: what is read, how it is split, and one clear line for what cannot be read."""

import json
import os
import subprocess
import sys
import time

import datasets
import huggingface_hub
import numpy as np
import pytest

from hybrid_lm.data.config import DataConfig
from hybrid_lm.data.prepare import prepare
from hybrid_lm.errors import UserError


def prepared(source, tmp_path, **options):
    return prepare(DataConfig(source=str(source), cache_dir=str(tmp_path / "cache"), **options))


def names(corpus):
    return {split: corpus.split(split).names for split in corpus.manifest["splits"]}


def all_names(corpus):
    return sorted(name for split in names(corpus).values() for name in split)


def write_parquet(path, columns):
    datasets.Dataset.from_dict(columns).to_parquet(str(path))


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    return prepared("stdlib", tmp_path_factory.mktemp("stdlib"))


def test_stdlib_holds_hundreds_of_real_documents(stdlib):
    found = all_names(stdlib)
    lengths = np.concatenate([stdlib.split(s).lengths for s in names(stdlib)])
    assert len(set(found)) == len(found) > 300
    assert np.sum(lengths > 32_768) > 50
    assert "argparse.py" in found
    assert not [n for n in found if "site-packages" in n or n.startswith("encodings/")]


def test_stdlib_documents_are_the_files(stdlib):
    split = stdlib.split("validation")
    for index in range(0, len(split), 40):
        text = stdlib.tokenizer.decode(split.document(index))
        path = os.path.join(os.path.dirname(os.__file__), split.names[index])
        with open(path, "rb") as file:
            assert text.encode() == file.read()


def test_stdlib_splits_are_shares_of_the_documents(stdlib):
    counts = {split: len(stdlib.split(split)) for split in names(stdlib)}
    total = sum(counts.values())
    assert abs(counts["validation"] / total - 0.10) < 0.01
    assert abs(counts["test"] / total - 0.05) < 0.01


def test_text_files_are_documents_named_by_path(tmp_path):
    folder = tmp_path / "texts"
    (folder / "inner").mkdir(parents=True)
    (folder / "empty.txt").write_bytes(b"")
    for name in ("a.txt", "b.txt", "inner/c.txt"):
        (folder / name).write_bytes(b"line one\r\nline two \xc3\xa9")
    corpus = prepared(folder, tmp_path)
    assert all_names(corpus) == ["a.txt", "b.txt", "inner/c.txt"]
    text = corpus.tokenizer.decode(corpus.split("test").document(0))
    assert text == "line one\r\nline two é"


def test_glob_takes_what_it_names(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt", "other.txt"):
        (tmp_path / name).write_text("text")
    corpus = prepared(tmp_path / "?.txt", tmp_path)
    assert all_names(corpus) == ["a.txt", "b.txt", "c.txt"]


def test_parquet_directory_gives_its_splits_and_titles(tmp_path):
    for split, count in (("train-0", 2), ("train-1", 2), ("validation", 2), ("test", 1)):
        write_parquet(
            tmp_path / f"{split}.parquet",
            {
                "publication_date": [1900] * count,
                "short_book_title": [f"{split} book {i}" for i in range(count)],
                "text": ["It was a dark night."] * count,
            },
        )
    assert names(prepared(tmp_path, tmp_path)) == {
        "train": [f"train-{part} book {i}" for part in (0, 1) for i in (0, 1)],
        "validation": ["validation book 0", "validation book 1"],
        "test": ["test book 0"],
    }


def test_a_missing_split_is_drawn_from_train(tmp_path):
    for split, count in (("train", 4), ("test", 2)):
        rows = [json.dumps({"id": f"{split} {i}", "text": "text"}) for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    found = names(prepared(tmp_path, tmp_path))
    assert found["test"] == ["test 0", "test 1"]
    assert len(found["validation"]) == 1
    assert sorted(found["train"] + found["validation"]) == [f"train {i}" for i in range(4)]


def test_rows_without_title_are_named_by_row_and_empty_ones_left_out(tmp_path):
    texts = ["a", "", "b", None, "c"]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"body": t}) for t in texts))
    corpus = prepared(tmp_path / "x.jsonl", tmp_path, text_column="body")
    assert all_names(corpus) == ["row 0", "row 2", "row 4"]


def test_hub_dataset_keeps_its_splits(tmp_path, monkeypatch):
    def load_dataset(repo_id, config_name):
        assert (repo_id, config_name) == ("owner/name", "en")
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict({"text": ["x"], "title": [split]})
                for split in ("train", "validation", "test", "unsupervised")
            }
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    corpus = prepared("hub:owner/name:en", tmp_path)
    assert names(corpus) == {s: [s] for s in ("train", "validation", "test")}


def test_a_prepared_hub_dataset_needs_no_network(tmp_path, monkeypatch):
    test_hub_dataset_keeps_its_splits(tmp_path, monkeypatch)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", None)
    assert names(prepared("hub:owner/name:en", tmp_path))["test"] == ["test"]


# Bad input: each its own line.


def refused(match, source, tmp_path, **options):
    with pytest.raises(UserError, match=match) as caught:
        prepared(source, tmp_path, **options)
    assert "\n" not in str(caught.value)
    cache = tmp_path / "cache"
    assert not cache.exists() or not list(cache.iterdir())


def test_missing_path(tmp_path):
    refused("nowhere.txt: no such file or directory", tmp_path / "nowhere.txt", tmp_path)
    refused("no such file or directory", tmp_path / "*.parquet", tmp_path)


@pytest.mark.parametrize("content", [None, ("a.txt", ""), ("a.csv", "text\nx\n")])
def test_nothing_to_read(tmp_path, content):
    folder = tmp_path / "folder"
    folder.mkdir()
    if content:
        (folder / content[0]).write_text(content[1])
    refused("no .txt, .jsonl or .parquet file with anything in it", folder, tmp_path)


def test_documents_without_text(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": ""}\n' * 5)
    refused("hold no text", tmp_path / "x.jsonl", tmp_path)


def test_mixed_formats(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}')
    refused(r"holds \.jsonl and \.txt files; name one kind by a glob", tmp_path, tmp_path)


def test_a_file_of_no_split_beside_split_files(tmp_path):
    for name in ("train.txt", "test.txt", "extra.txt"):
        (tmp_path / name).write_text("a")
    refused(r"extra\.txt belongs to no split", tmp_path, tmp_path)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_missing_text_column_lists_the_columns(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    columns = {"body": ["a"], "title": ["b"]}
    if suffix == "jsonl":
        path.write_text(json.dumps({k: v[0] for k, v in columns.items()}))
    else:
        write_parquet(path, columns)
    refused("no column 'text'; set text_column to one of body, title", path, tmp_path)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2, 3], "int64"), ([["a"]], "nested values"), ([{"a": 1}], "nested values")],
)
def test_text_column_of_another_type(tmp_path, values, kind):
    write_parquet(tmp_path / "x.parquet", {"text": values})
    refused(f"column 'text' holds {kind}, not text", tmp_path / "x.parquet", tmp_path)


def test_corrupt_parquet_names_the_file(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["a" * 1000] * 100})
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    refused(r"b\.parquet: cannot be read as parquet", tmp_path / "*.parquet", tmp_path)


def test_corrupt_jsonl_names_the_file(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"te')
    refused(r"x\.jsonl: cannot be read as json", tmp_path / "x.jsonl", tmp_path)


def test_text_file_of_another_encoding(tmp_path):
    (tmp_path / "x.txt").write_bytes("é".encode("latin-1"))
    refused(r"x\.txt: not UTF-8 at byte 0", tmp_path / "x.txt", tmp_path)


def test_too_few_documents_to_split(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' * 2)
    refused(r"2 document\(s\) cannot be split", tmp_path / "x.jsonl", tmp_path)


def test_unreachable_hub_is_not_retried(tmp_path, monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", None)
    refused("cannot be had from the Hub: Name or service not known", "hub:owner/name", tmp_path)


def test_offline_command_fails_fast_with_one_line(tmp_path):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "hybrid_lm.data.prepare", "--source", "hub:owner/name"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: hub:owner/name: cannot be loaded")
    assert done.stderr.count("\n") == 1
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(validation_fraction=0.0), "must be positive"),
        (dict(validation_fraction=0.6, test_fraction=0.4), "leave documents to train on"),
        (dict(tokenizer="bpe", bpe_vocab_size=256), "at least 257"),
        (dict(max_segments=0), "at least 1 segment"),
    ],
)
def test_impossible_settings(options, match):
    with pytest.raises(UserError, match=match):
        DataConfig(**options)
