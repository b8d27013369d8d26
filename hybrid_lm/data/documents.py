"""Documents by split: a source's own splits, and missing ones drawn from its train documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hybrid_lm.data.config import DataConfig
from hybrid_lm.data.sources import SPLITS, Source
from hybrid_lm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Documents:
    """Chosen rows of a table with columns "text" and, where there are titles, "name"."""

    table: "Dataset"
    rows: np.ndarray

    def batches(self, size: int) -> Iterator[list[tuple[str, str]]]:
        """(name, text) of at most ``size`` documents at a time; those without text are left out."""
        for start in range(0, len(self.rows), size):
            rows = self.rows[start : start + size]
            batch = self.table[rows]
            names = batch.get("name", [None] * len(rows))
            yield [
                (f"row {row}" if name is None else str(name), text)
                for row, name, text in zip(rows, names, batch["text"], strict=True)
                if text
            ]


def load_documents(source: Source, config: DataConfig, work_dir: str) -> dict[str, Documents]:
    """Documents of all three splits; the draw is by whole documents, with a fixed seed.

    Raises `UserError` where there are too few documents to draw from.
    """
    documents = {
        split: Documents(table, np.arange(len(table)))
        for split, table in source.load(work_dir).items()
    }
    fractions = {"validation": config.validation_fraction, "test": config.test_fraction}
    train = documents["train"]
    order = np.random.default_rng(0).permutation(train.rows)
    counts = {
        split: max(1, round(len(order) * fraction))
        for split, fraction in fractions.items()
        if split not in documents
    }
    if len(order) <= sum(counts.values()):
        raise UserError(
            f"{config.source}: {len(order)} document(s) cannot be split into train, "
            f"{' and '.join(counts)}; give at least {len(counts) + 1}"
        )
    for split, count in counts.items():
        documents[split] = Documents(train.table, np.sort(order[:count]))
        order = order[count:]
    documents["train"] = Documents(train.table, np.sort(order))
    return {split: documents[split] for split in SPLITS}
