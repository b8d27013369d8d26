"""Text to token ids and back: UTF-8 bytes, or a byte-level BPE trained locally.

Both keep one id, `document_id`, that stands for no text: it starts every document and is the target
after a document's last token.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hybrid_lm.errors import UserError


class Tokenizer(Protocol):
    """Lossless map between text and token ids."""

    kind: str
    vocab_size: int
    document_id: int
    token_bytes_V: np.ndarray
    """Number of UTF-8 bytes every id stands for, int32; 0 for `document_id`."""

    def encode(self, text: str) -> np.ndarray:
        """Token ids of a text, int32, without the document-start token."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of every text, on all cores where the tokenizer can."""
        ...

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of the ids; skips `document_id`, cut UTF-8 sequences become U+FFFD."""
        ...

    def dumps(self) -> str:
        """The tokenizer as JSON text; equal tokenizers give equal text."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as ids 0..255, and 256 for the start of a document."""

    kind = "bytes"
    vocab_size = 257
    document_id = 256

    def __init__(self):
        self.token_bytes_V = np.ones(self.vocab_size, np.int32)
        self.token_bytes_V[self.document_id] = 0

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(t for t in tokens if t != self.document_id).decode(errors="replace")

    def dumps(self) -> str:
        return json.dumps({"kind": self.kind})


class BPETokenizer:
    """Byte-level BPE (GPT-2's pre-tokenization and byte alphabet); the last id starts a document.

    The document-start token is unknown to the BPE itself, so no text can be mistaken for it.
    """

    kind = "bpe"

    def __init__(self, bpe: Any):
        """``bpe`` is a `tokenizers.Tokenizer` with the byte-level pre-tokenizer and decoder."""
        self._bpe = bpe
        self.document_id = bpe.get_vocab_size()
        self.vocab_size = self.document_id + 1
        self.token_bytes_V = np.zeros(self.vocab_size, np.int32)
        for token, index in bpe.get_vocab().items():
            self.token_bytes_V[index] = len(token)  # one character of the alphabet per byte

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Learn merges from texts until ``vocab_size`` ids are used or no pair repeats."""
        tokenizers = _import_tokenizers()
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            min_frequency=2,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        return cls(bpe)

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._bpe.encode(text).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(e.ids, np.int32) for e in self._bpe.encode_batch_fast(texts)]

    def decode(self, tokens: Iterable[int]) -> str:
        return self._bpe.decode([t for t in tokens if t != self.document_id])

    def dumps(self) -> str:
        return json.dumps({"kind": self.kind, "bpe": json.loads(self._bpe.to_str())})


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer to one JSON file."""
    path.write_text(tokenizer.dumps(), encoding="utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer from the file that `save_tokenizer` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["kind"] == "bytes":
        return ByteTokenizer()
    return BPETokenizer(_import_tokenizers().Tokenizer.from_str(json.dumps(content["bpe"])))


def _import_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "the bpe tokenizer needs the tokenizers package: pip install 'hybrid_lm[bpe]'"
        ) from error
    return tokenizers
