"""Tokenize a source once into a corpus on disk, and find it again.

The command ``python -m hybrid_lm.data.prepare --source ...`` does it ahead of training.
"""

import errno
import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hybrid_lm.cli import arguments, parse
from hybrid_lm.data import corpus as layout
from hybrid_lm.data.config import DataConfig
from hybrid_lm.data.corpus import Corpus
from hybrid_lm.data.documents import Documents, load_documents
from hybrid_lm.data.sources import Source, find_source
from hybrid_lm.data.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer, save_tokenizer
from hybrid_lm.errors import UserError, exit_on_user_error

FORMAT = 1  # of the files on disk; part of the key, so that another format is another corpus
BATCH_DOCUMENTS = 8
BPE_SAMPLE_CHARACTERS = 16_000_000
BPE_SAMPLE_CHARACTERS_PER_DOCUMENT = 100_000

log = logging.getLogger(__name__)


def prepare(config: DataConfig, *, tokenizer: Tokenizer | None = None) -> Corpus:
    """Open the corpus of ``config``, preparing it first where no whole and current one is cached.

    ``tokenizer`` takes the place of the configured one: the one a model was trained with, to
    evaluate it on another corpus. Raises `UserError` for a source that cannot be used.
    """
    source = find_source(config)
    directory = _directory(config, source, tokenizer)
    if directory.exists():
        try:
            return Corpus(directory)
        except UserError as error:
            log.warning("preparing %s again: %s", config.source, error)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        work_dir = tempfile.TemporaryDirectory(prefix=".preparing-", dir=directory.parent)
    except OSError as error:
        raise UserError(f"cache_dir {config.cache_dir!r} cannot be written: {error}") from error
    with work_dir as work:
        built = Path(work, "corpus")
        _build(built, source, config, tokenizer, work)
        _publish(built, directory)
    return Corpus(directory)


def find_prepared(config: DataConfig) -> Corpus | None:
    """The cached corpus of ``config``; None where it is still to be prepared."""
    directory = _directory(config, find_source(config), None)
    with suppress(UserError):
        return Corpus(directory)
    return None


def _directory(config: DataConfig, source: Source, tokenizer: Tokenizer | None) -> Path:
    if tokenizer is not None:
        tokenizer_key = tokenizer.dumps()
    else:
        tokenizer_key = config.bpe_vocab_size if config.tokenizer == "bpe" else "bytes"
    key = [
        FORMAT,
        config.source,
        source.fingerprint,
        config.text_column,
        tokenizer_key,
        config.validation_fraction,
        config.test_fraction,
    ]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    name = re.sub(r"[^\w.]+", "-", source.name).strip("-")
    kind = tokenizer.kind if tokenizer is not None else config.tokenizer
    return Path(config.cache_dir, f"{name}-{kind}-{digest}")


def _build(
    directory: Path, source: Source, config: DataConfig, tokenizer: Tokenizer | None, work_dir: str
) -> None:
    documents = load_documents(source, config, work_dir)
    if tokenizer is None:
        tokenizer = _make_tokenizer(config, documents["train"])
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    directory.mkdir()
    save_tokenizer(tokenizer, directory / layout.TOKENIZER)
    splits = {
        split: _write_split(directory / split, documents[split], tokenizer, dtype, config.source)
        for split in documents
    }
    manifest = {
        "format": FORMAT,
        "source": {"name": config.source, "fingerprint": source.fingerprint},
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "sha256": hashlib.sha256(tokenizer.dumps().encode()).hexdigest(),
        },
        "token_dtype": dtype.name,
        "splits": splits,
        "file_bytes": {
            path.relative_to(directory).as_posix(): path.stat().st_size
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        },
    }
    (directory / layout.MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _make_tokenizer(config: DataConfig, train: Documents) -> Tokenizer:
    if config.tokenizer == "bytes":
        return ByteTokenizer()
    return BPETokenizer.train(_sample(train), config.bpe_vocab_size)


def _sample(train: Documents) -> Iterator[str]:
    """The heads of documents in a fixed random order, up to a bounded amount of text."""
    shuffled = Documents(train.table, np.random.default_rng(0).permutation(train.rows))
    remaining = BPE_SAMPLE_CHARACTERS
    for batch in shuffled.batches(BATCH_DOCUMENTS):
        for _, text in batch:
            head = text[: min(remaining, BPE_SAMPLE_CHARACTERS_PER_DOCUMENT)]
            yield head
            remaining -= len(head)
            if remaining <= 0:
                return


def _write_split(
    directory: Path, documents: Documents, tokenizer: Tokenizer, dtype: np.dtype, source: str
) -> dict[str, Any]:
    """Write one split's files; its entry in the manifest."""
    directory.mkdir()
    names, lengths, byte_counts = [], [], []
    sha256 = hashlib.sha256()
    start = np.array([tokenizer.document_id])
    with open(directory / layout.TOKENS, "wb") as file:
        for batch in _progress(documents, directory.name):
            encoded = tokenizer.encode_batch([text for _, text in batch])
            for (name, text), ids in zip(batch, encoded, strict=True):
                data = np.concatenate([start, ids]).astype(dtype).tobytes()
                file.write(data)
                sha256.update(data)
                names.append(name)
                lengths.append(len(ids) + 1)
                byte_counts.append(len(text.encode()))
    if not names:
        raise UserError(f"{source}: the documents of the {directory.name} split hold no text")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    np.save(directory / layout.OFFSETS, offsets.astype(np.int64))
    np.save(directory / layout.BYTE_COUNTS, np.array(byte_counts, np.int64))
    (directory / layout.NAMES).write_text(json.dumps(names), encoding="utf-8")
    return {
        "documents": len(names),
        "tokens": int(offsets[-1]),
        "bytes": sum(byte_counts),
        "sha256": sha256.hexdigest(),
    }


def _progress(documents: Documents, split: str) -> Iterator[list[tuple[str, str]]]:
    console = Console(stderr=True)
    yield from track(
        documents.batches(BATCH_DOCUMENTS),
        f"tokenizing {split}",
        total=-(-len(documents.rows) // BATCH_DOCUMENTS),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _publish(built: Path, directory: Path) -> None:
    """Put a finished corpus in its place in one step, unless another process did so meanwhile."""
    while True:
        try:
            os.rename(built, directory)
            return
        except OSError as error:  # a directory that holds files is not renamed over
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        try:
            Corpus(directory)
            return
        except UserError:
            # A corpus that lost files; `built`'s temporary directory takes it along.
            with suppress(FileNotFoundError):
                os.rename(directory, Path(tempfile.mkdtemp(dir=built.parent), "corrupt"))


def main() -> None:
    """Prepare a corpus and print its manifest as a table."""
    corpus = prepare(parse(DataConfig, arguments(), description=__doc__ or ""))
    tokenizer = corpus.manifest["tokenizer"]
    table = Table(
        title=f"{corpus.manifest['source']['name']}, {tokenizer['kind']} tokenizer "
        f"({tokenizer['vocab_size']} ids)",
        caption=str(corpus.directory),
    )
    table.add_column("split")
    for column in ("documents", "tokens", "bytes", "longest", "sha256"):
        table.add_column(column, justify="right")
    for split, counts in corpus.manifest["splits"].items():
        table.add_row(
            split,
            f"{counts['documents']:,}",
            f"{counts['tokens']:,}",
            f"{counts['bytes']:,}",
            f"{corpus.split(split).lengths.max():,}",
            counts["sha256"][:8],
        )
    Console().print(table)


if __name__ == "__main__":
    exit_on_user_error(main)
