"""The NLL, and what each group buys, by the kind of token that is predicted.

Losses by token class of hybrids: arXiv 2606.20936; repeated n-grams: Arora et al. 2023
(arXiv 2312.04927).
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hybrid_lm.data.corpus import Corpus
from hybrid_lm.data.tokenizers import Tokenizer
from hybrid_lm.instruments.base import Subject, adjusted_p
from hybrid_lm.instruments.bench import Bench
from hybrid_lm.instruments.cache import Arrays
from hybrid_lm.results import Report, TokenClass, TokenClassGroup
from hybrid_lm.statistics import ci95

_EDGES = (256, 1024, 2048, 4096)
_REPEATS = ("repeat <256", "repeat 256-1k", "repeat 1-2k", "repeat 2-4k", "repeat >4k")
_COUNTED = 2**22  # tokens of the training split that rare and frequent ids are counted in


@dataclass(frozen=True)
class TokenClassesInstrument:
    """Sums over the predicted tokens of every class, whole and with each group skipped.

    Arrays: ``tokens`` [classes, documents]; ``nats`` [classes, 1 + groups, documents].
    """

    ngram_bytes: int = 8
    """Of the n-grams that count as repeated; at least 2 tokens."""
    rare: float = 0.05
    """Share of training tokens that the rarest ids make up."""
    frequent: float = 0.5
    """Share of training tokens that the most frequent ids make up."""
    name: ClassVar[str] = "token_classes"
    caveat: ClassVar[str] = (
        "Token classes overlap, and differ in how hard their tokens are; compare a class with and "
        "without a group, not one class with another."
    )

    def passes(self, bench: Bench, corpus: Corpus) -> float:
        return 0.0  # no forward pass: the NLL of every token is in the table

    def ngram(self, subject: Subject) -> int:
        """Tokens of an n-gram."""
        targets_BL = subject.bench.documents.targets_BL
        mean_bytes = subject.corpus.tokenizer.token_bytes_V[targets_BL].mean()
        return max(2, round(self.ngram_bytes / max(mean_bytes, 1)))

    def definitions(self, subject: Subject) -> dict[str, str]:
        """What the tokens of every class are."""
        n = self.ngram(subject)
        starts = (0, *_EDGES)
        repeats = {
            name: f"ends an n-gram of {n} tokens last seen {_distance(start, end)} tokens before"
            for name, start, end in zip(_REPEATS, starts, (*_EDGES, None), strict=True)
        }
        return repeats | {
            "first occurrence": f"ends an n-gram of {n} tokens not seen before in the document",
            "rare token": f"of the rarest ids, {self.rare:.0%} of training tokens together",
            "frequent token": f"of the most frequent ids, {self.frequent:.0%} of training tokens",
            "closing delimiter": "closing brackets alone: ) ] }",
        }

    def measure(self, subject: Subject) -> Arrays:
        documents, table = subject.bench.documents, subject.table
        n = self.ngram(subject)
        distance_BL = np.stack([repeat_distance(row, n) for row in documents.targets_BL])
        place_BL = np.digitize(distance_BL, _EDGES)
        masks = [(distance_BL > 0) & (place_BL == i) for i in range(len(_REPEATS))]
        masks.append(distance_BL == 0)
        counts_V = training_counts(subject.corpus)
        ids = [
            share(counts_V, self.rare, rarest=True),
            share(counts_V, self.frequent, rarest=False),
            closing_delimiters(subject.corpus.tokenizer),
        ]
        masks += [of_class_V[documents.targets_BL] for of_class_V in ids]
        nll = np.concatenate([table["nll"][None], table["without"]])
        return {
            "tokens": np.stack([mask.sum(axis=1) for mask in masks]),
            "nats": np.stack([np.sum(nll, axis=2, where=mask, dtype=np.float64) for mask in masks]),
        }

    def extend(self, report: Report, arrays: Arrays, subject: Subject) -> Report:
        classes = []
        delta = arrays["nats"][:, 1:] - arrays["nats"][:, :1]
        p = adjusted_p(np.moveaxis(delta, 2, 0))
        for i, (name, definition) in enumerate(self.definitions(subject).items()):
            have = arrays["tokens"][i] > 0
            if have.sum() < 2:  # no interval
                continue
            tokens, nats = arrays["tokens"][i][have], arrays["nats"][i][:, have]
            cells = np.stack([nats[0], *(nats[1:] - nats[0])], axis=1)
            counts = np.broadcast_to(tokens[:, None], cells.shape)
            intervals = ci95(cells, counts, resamples=subject.bench.resamples).tolist()
            (nll, ci), *of_groups = zip(
                (cells.sum(axis=0) / tokens.sum()).tolist(), map(tuple, intervals), strict=True
            )
            groups = tuple(
                TokenClassGroup(group.name, *found, p[i][g])
                for g, (group, found) in enumerate(zip(report.groups, of_groups, strict=True))
            )
            classes.append(
                TokenClass(name, definition, int(tokens.sum()), len(tokens), nll, ci, groups)
            )
        return dataclasses.replace(report, token_classes=tuple(classes))

    def protocol(self, arrays: Arrays, subject: Subject) -> str:
        return (
            f"n-grams of {self.ngram(subject)} tokens within a document; frequencies of the first "
            f"{_COUNTED:,} training tokens; groups are skipped."
        )


def _distance(start: int, end: int | None) -> str:
    if end is None:
        return f"{start:,} or more"
    return f"{start:,} to {end - 1:,}" if start else f"less than {end:,}"


def repeat_distance(targets_L: np.ndarray, n: int) -> np.ndarray:
    """Tokens since the n-gram that ends at each token last ended; 0: never; -1: no n tokens yet."""
    distance_L = np.full(len(targets_L), -1)
    if len(targets_L) < n:
        return distance_L
    grams = np.lib.stride_tricks.sliding_window_view(targets_L, n)
    _, ids = np.unique(grams, axis=0, return_inverse=True)
    order = np.argsort(ids, kind="stable")  # equal n-grams side by side, in the order they come
    same = ids[order][1:] == ids[order][:-1]
    ends = np.zeros(len(ids), int)
    ends[order[1:]] = np.where(same, order[1:] - order[:-1], 0)
    distance_L[n - 1 :] = ends
    return distance_L


def training_counts(corpus: Corpus) -> np.ndarray:
    """How often every id comes in the first documents of the training split."""
    split, left = corpus.split("train"), _COUNTED
    counts_V = np.zeros(len(corpus.tokenizer.token_bytes_V), int)
    for index, length in enumerate(split.lengths.tolist()):
        tokens = split.tokens(index, 0, min(length, left))
        counts_V += np.bincount(tokens, minlength=len(counts_V))
        left -= len(tokens)
        if left <= 0:
            break
    return counts_V


def share(counts_V: np.ndarray, fraction: float, *, rarest: bool) -> np.ndarray:
    """True for the rarest (or most frequent) ids that make up at most ``fraction`` together."""
    order = np.argsort(counts_V if rarest else -counts_V, kind="stable")
    within = np.cumsum(counts_V[order]) <= fraction * counts_V.sum()
    is_in_V = np.zeros(len(counts_V), bool)
    is_in_V[order[within]] = True
    return is_in_V


def closing_delimiters(tokenizer: Tokenizer) -> np.ndarray:
    """True for ids whose text is closing brackets, white space around them aside."""
    texts = (tokenizer.decode([index]).strip() for index in range(len(tokenizer.token_bytes_V)))
    return np.array([text != "" and set(text) <= set(")]}") for text in texts])
