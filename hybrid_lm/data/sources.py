"""Where documents come from: the standard library, local files or the Hub, through HF `datasets`.

A source knows its fingerprint before any text is read; `Source.load` then gives its tables, all
with a column "text" of one document per row and, where the source names its documents, "name".
"""

import glob
import hashlib
import json
import os
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hybrid_lm.data.config import DataConfig
from hybrid_lm.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = ("train", "validation", "test")
TITLE_COLUMNS = ("short_book_title", "title", "name", "id")
FORMATS = {".txt": "text", ".jsonl": "json", ".parquet": "parquet"}
_SPLIT_NAME = re.compile(r"(train|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)
# encodings/ is some hundred generated character tables, near copies of one another.
_STDLIB_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "encodings"}


@dataclass(frozen=True)
class Source:
    """A place that holds documents."""

    name: str
    """Short name, for directories."""
    fingerprint: str
    """Changes when the files behind the source change."""
    load: Callable[[str], "dict[str, Dataset]"]
    """Tables by split (all under "train" if it has none), given a directory for temporary files."""


def find_source(config: DataConfig) -> Source:
    """The source that ``config`` names; raises `UserError` where there is nothing to read."""
    if config.source == "stdlib":
        return _stdlib()
    if config.source.startswith("hub:"):
        return _hub(config.source, config.text_column)
    return _files(config.source, config.text_column)


def _stdlib() -> Source:
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path
        for path in sorted(root.rglob("*.py"))
        if _STDLIB_SKIPPED.isdisjoint(path.relative_to(root).parts)
    ]
    if not paths:
        raise UserError(f"no Python files of the standard library under {root}; name a source")

    def load(work_dir: str) -> "dict[str, Dataset]":
        return {"train": _load_texts(paths, root, work_dir, skip_undecodable=True)}

    return Source("stdlib", _stat_fingerprint(paths, root), load)


def _files(pattern: str, text_column: str) -> Source:
    paths = [p for p in _matches(pattern) if p.suffix in FORMATS and p.stat().st_size > 0]
    if not paths:
        raise UserError(f"{pattern}: no .txt, .jsonl or .parquet file with anything in it")
    suffixes = sorted({path.suffix for path in paths})
    if len(suffixes) > 1:
        raise UserError(f"{pattern}: holds {' and '.join(suffixes)} files; name one kind by a glob")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    paths_by_split = _by_split({path: path.name for path in paths}, pattern)

    def load(work_dir: str) -> "dict[str, Dataset]":
        if suffixes == [".txt"]:
            return {s: _load_texts(paths, root, work_dir) for s, paths in paths_by_split.items()}
        return {
            split: _load_tables(FORMATS[suffixes[0]], paths, text_column, work_dir)
            for split, paths in paths_by_split.items()
        }

    return Source(Path(pattern).stem, _stat_fingerprint(paths, root), load)


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = path.rglob("*")
    else:
        found = [path] if path.exists() else map(Path, glob.glob(str(path), recursive=True))
    files = sorted(p for p in found if p.is_file())
    if not files and not path.is_dir():
        raise UserError(
            f"{pattern}: no such file or directory; a source is 'stdlib', 'hub:owner/name', "
            "or a path to .txt, .jsonl or .parquet files"
        )
    return files


def _by_split[T](names: Mapping[T, str], source: str) -> dict[str, list[T]]:
    """Things by the split their name begins with (train*, validation*, test*), or all as train.

    Names count only where one of several begins with train; then all must belong to a split, lest
    test documents be trained on.
    """
    splits = {thing: _split_of(name) for thing, name in names.items()}
    if len(names) == 1 or "train" not in splits.values():
        return {"train": list(names)}
    strays = [name for thing, name in names.items() if splits[thing] is None]
    if strays:
        raise UserError(
            f"{source}: {strays[0]} belongs to no split though others are named train*; "
            "name all of them train*, validation* or test*, or none"
        )
    return {
        split: [thing for thing in names if splits[thing] == split]
        for split in SPLITS
        if split in splits.values()
    }


def _split_of(name: str) -> str | None:
    match = _SPLIT_NAME.match(name)
    if match is None:
        return None
    word = match[1].lower()
    return "validation" if word in ("valid", "val", "dev") else word


def _stat_fingerprint(paths: Sequence[Path], root: Path) -> str:
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in paths]
    rows = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _load_texts(
    paths: Sequence[Path], root: Path, work_dir: str, *, skip_undecodable: bool = False
) -> "Dataset":
    from datasets import Dataset, Features, Value
    from datasets.exceptions import DatasetGenerationError

    try:
        with _quiet_datasets():
            return Dataset.from_generator(
                _read_texts,
                features=Features({"name": Value("string"), "text": Value("large_string")}),
                cache_dir=work_dir,
                # Tuples, as `datasets` takes lists for shards to spread over processes.
                gen_kwargs={"paths": tuple(paths), "root": root, "skip": skip_undecodable},
                writer_batch_size=16,
            )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def _read_texts(paths: Sequence[Path], root: Path, skip: bool) -> Iterator[dict[str, str]]:
    for path in paths:
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            if skip:
                continue
            raise UserError(f"{path}: not UTF-8 at byte {error.start}; convert it") from error
        yield {"name": path.relative_to(root).as_posix(), "text": text}


def _load_tables(
    file_format: str, paths: Sequence[Path], text_column: str, work_dir: str
) -> "Dataset":
    from datasets import concatenate_datasets, load_dataset

    tables = []
    for path in paths:  # one by one, so that an error can name its file
        try:
            with _quiet_datasets():
                table = load_dataset(
                    file_format, data_files=str(path), split="train", cache_dir=work_dir
                )
        except Exception as error:  # every format's library raises errors of its own
            raise UserError(
                f"{path}: cannot be read as {file_format}: {_one_line(error)}"
            ) from error
        tables.append(_named_texts(table, text_column, str(path)))
    try:
        return concatenate_datasets(tables)
    except ValueError as error:
        raise UserError(f"files differ in their columns: {_one_line(error)}") from error


def _hub(source: str, text_column: str) -> Source:
    repo_id, _, config_name = source.removeprefix("hub:").partition(":")

    def load(work_dir: str) -> "dict[str, Dataset]":
        from datasets import concatenate_datasets, load_dataset

        _require_hub_dataset(source, repo_id)
        try:
            # The Hub's files stay in the Hub's own cache; `work_dir` is only for what is temporary.
            tables = load_dataset(repo_id, config_name or None)
        except Exception as error:  # from the network, the Hub, or any format's library
            raise UserError(f"{source}: cannot be loaded: {_one_line(error)}") from error
        found = [str(name) for name in tables]
        chosen = [name for name in found if _split_of(name)] or found
        return {
            split: concatenate_datasets(
                [_named_texts(tables[name], text_column, source) for name in names]
            )
            for split, names in _by_split({name: name for name in chosen}, source).items()
        }

    return Source(repo_id, hashlib.sha256(source.encode()).hexdigest(), load)


def _require_hub_dataset(source: str, repo_id: str) -> None:
    """Ask the Hub once, within seconds; without a network `load_dataset` would retry for long."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        HfApi().dataset_info(repo_id, timeout=10)
    except OfflineModeIsEnabled:
        pass  # `load_dataset` then takes the copy in the Hub's cache, or says that there is none
    except Exception as error:  # the HTTP client's errors, or the Hub's answer
        raise UserError(
            f"{source}: cannot be had from the Hub: {_one_line(error)}; without a network, prepare "
            "where there is one, or set HF_HUB_OFFLINE=1 to use a copy downloaded before"
        ) from error


def _named_texts(table: "Dataset", text_column: str, origin: str) -> "Dataset":
    """Only the document and its title, as "text" and "name"."""
    columns = table.column_names
    if text_column not in columns:
        raise UserError(
            f"{origin}: no column {text_column!r}; set text_column to one of {', '.join(columns)}"
        )
    dtype = getattr(table.features[text_column], "dtype", "nested values")
    if dtype not in ("string", "large_string"):
        raise UserError(f"{origin}: column {text_column!r} holds {dtype}, not text")
    titles = [title for title in TITLE_COLUMNS if title in columns and title != text_column][:1]
    renamed = {text_column: "text", **dict.fromkeys(titles, "name")}
    return table.select_columns(list(renamed)).rename_columns(renamed)


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """No progress bars and no log of an error that we report in one line ourselves."""
    from datasets import disable_progress_bars, enable_progress_bars
    from datasets.utils import are_progress_bars_disabled, logging

    were_disabled, verbosity = are_progress_bars_disabled(), logging.get_verbosity()
    disable_progress_bars()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if not were_disabled:
            enable_progress_bars()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
