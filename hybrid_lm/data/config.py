"""What to read and how to cut it: the data part of a run's configuration."""

from dataclasses import dataclass
from typing import Literal

from hybrid_lm.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """Source, tokenizer, cache and packing of the documents."""

    source: str = "stdlib"
    """stdlib, a path or glob of .txt, .jsonl or .parquet files, or hub:owner/name[:config]."""
    text_column: str = "text"
    """Column that holds the documents (.jsonl, .parquet and Hub sources)."""
    tokenizer: Literal["bytes", "bpe"] = "bytes"
    """UTF-8 bytes, or a byte-level BPE trained on the train split."""
    bpe_vocab_size: int = 8192
    """Vocabulary of the BPE tokenizer, the document-start token included."""
    cache_dir: str = "data/cache"
    """Where prepared corpora are kept."""
    validation_fraction: float = 0.1
    """Share of documents drawn for validation where the source has no such split of its own."""
    test_fraction: float = 0.05
    """Share of documents drawn for the test where the source has no such split of its own."""
    pack: bool = True
    """Several documents per row; otherwise one piece of one document, padded on the right."""
    max_segments: int = 8
    """At most so many segments in a packed row: the static bound of the GPU attention kernel."""

    def __post_init__(self):
        if self.tokenizer == "bpe" and self.bpe_vocab_size < 257:
            raise UserError(
                f"bpe_vocab_size is {self.bpe_vocab_size}; byte-level BPE needs at least 257 "
                "(every byte and the document-start token)"
            )
        fractions = (self.validation_fraction, self.test_fraction)
        if min(fractions) <= 0 or sum(fractions) >= 1:
            raise UserError(
                f"validation_fraction {self.validation_fraction} and test_fraction "
                f"{self.test_fraction} must be positive and leave documents to train on"
            )
        if self.max_segments < 1:
            raise UserError(f"max_segments is {self.max_segments}; a row holds at least 1 segment")
