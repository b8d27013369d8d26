"""Read-only view of a prepared corpus: documents of token ids by split, memory-mapped."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_lm.data.tokenizers import Tokenizer, load_tokenizer
from hybrid_lm.errors import UserError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
TOKENS = "tokens.bin"
OFFSETS = "offsets.npy"
BYTE_COUNTS = "byte_counts.npy"
NAMES = "names.json"


class Split:
    """The documents of one split; a document is its document-start token and its text's tokens."""

    def __init__(self, name: str, directory: Path, token_dtype: str):
        self.name = name
        self._directory = directory
        self._tokens = np.memmap(directory / TOKENS, token_dtype, mode="r")
        self._offsets = np.load(directory / OFFSETS)
        self.lengths: np.ndarray = np.diff(self._offsets)
        """Tokens of every document, the document-start token included, int64 [documents]."""
        self.byte_counts: np.ndarray = np.load(directory / BYTE_COUNTS)
        """UTF-8 bytes of every document's text, int64 [documents]."""

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def names(self) -> list[str]:
        """Title, path or row of every document."""
        return json.loads((self._directory / NAMES).read_text(encoding="utf-8"))

    def document(self, index: int) -> np.ndarray:
        """Tokens of one document, int32 [lengths[index]]."""
        return self.tokens(index, 0, int(self.lengths[index]))

    def tokens(self, index: int, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of one document, int32; ``stop`` may not pass its end."""
        first = self._offsets[index]
        return self._tokens[first + start : first + stop].astype(np.int32)


class Corpus:
    """A prepared corpus on disk; `prepare.prepare` makes and opens them.

    Raises `UserError` when the directory is not a whole corpus.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.manifest: dict[str, Any] = _checked_manifest(directory)
        self.tokenizer: Tokenizer = load_tokenizer(directory / TOKENIZER)
        dtype = self.manifest["token_dtype"]
        self._splits = {
            name: Split(name, directory / name, dtype) for name in self.manifest["splits"]
        }

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    def split(self, name: str) -> Split:
        """One of the splits "train", "validation" and "test"."""
        if name not in self._splits:
            raise UserError(f"no split {name!r}; there are {', '.join(self._splits)}")
        return self._splits[name]


def _checked_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, after comparing the size of every file with it."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        file_bytes = {name: (directory / name).stat().st_size for name in manifest["file_bytes"]}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{directory} is not a whole prepared corpus: {error!r}") from error
    for name, size in manifest["file_bytes"].items():
        if file_bytes[name] != size:
            raise UserError(f"{directory / name} has {file_bytes[name]} bytes instead of {size}")
    return manifest


def evaluation_documents(
    corpus: Corpus, split: str, *, length: int, limit: int | None = None
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(index, tokens_L, targets_L) of documents with at least ``length`` tokens of text to score.

    ``tokens_L`` is the document-start token and the first ``length`` - 1 tokens of text,
    ``targets_L`` the first ``length`` tokens of text, both int32. ``limit`` takes that many, evenly
    spaced over the split. Raises `UserError` when fewer than 2 documents are long enough.
    """
    documents = corpus.split(split)
    text_lengths = documents.lengths - 1
    long_enough = np.flatnonzero(text_lengths >= length)
    if len(long_enough) < 2:
        raise UserError(_too_short(split, text_lengths, length))
    if limit is not None and limit < len(long_enough):
        spaced = np.linspace(0, len(long_enough) - 1, limit).round().astype(int)
        long_enough = long_enough[spaced]
    chosen = []
    for index in long_enough.tolist():
        tokens = documents.tokens(index, 0, length + 1)
        chosen.append((index, tokens[:-1], tokens[1:]))
    return chosen


def _too_short(split: str, text_lengths: np.ndarray, length: int) -> str:
    found = (
        f"the {split} split has {np.sum(text_lengths >= length)} document(s) of at least {length} "
        f"tokens and needs 2; of its {len(text_lengths)}, the longest has {text_lengths.max()}"
    )
    if len(text_lengths) < 2:
        return f"{found}; use a corpus with more documents"
    second_longest = int(np.sort(text_lengths)[-2])
    return f"{found}; --evaluation.length {2 ** (second_longest.bit_length() - 1)} would work"
