"""The directory of one run, and everything it holds::

runs/NAME/
    config.json       the whole config, overrides included
    corpus.json       manifest of the corpus it trains on, with hashes
    tokenizer.json    the tokenizer, so that text can be read without that corpus
    metrics.jsonl     one line per `train.log_every` steps
    tensorboard/      the same, gradient norms per group, every report
    checkpoints/      one directory per kept step
    report/           report.json, report.md and report.html of the latest evaluation
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybrid_lm import config as configs
from hybrid_lm.config import Config
from hybrid_lm.data.corpus import Corpus
from hybrid_lm.data.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from hybrid_lm.errors import UserError

CONFIG = "config.json"
CORPUS = "corpus.json"
TOKENIZER = "tokenizer.json"


class RunDir:
    """An existing run directory.

    Raises:
        UserError: if ``path`` is none.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / CONFIG).is_file():
            raise UserError(f"{path} is no run directory: it holds no {CONFIG}")

    @classmethod
    def create(cls, path: str | Path, config: Config, corpus: Corpus) -> "RunDir":
        """Make the directory of a new run, whole or not at all.

        Raises:
            UserError: if there is something at ``path``, or it cannot be written.
        """
        path = Path(path)
        if find_run(path) is not None:
            raise UserError(f"{path} already holds a run")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".creating-", dir=path.parent) as work:
                built = Path(work, "run")
                built.mkdir()
                _write_json(built / CONFIG, configs.to_json(config))
                _write_json(built / CORPUS, corpus.manifest)
                save_tokenizer(corpus.tokenizer, built / TOKENIZER)
                os.rename(built, path)
        except OSError as error:
            raise UserError(f"run directory {path} cannot be written: {error}") from error
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def report_dir(self) -> Path:
        return self.path / "report"

    def config(self) -> Config:
        """The config that the run was started with.

        Raises:
            UserError: if it cannot be read.
        """
        record = self._read(CONFIG)
        try:
            return configs.from_json(record)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.path / CONFIG} is from another version of hybrid_lm: {error}"
            ) from error

    def corpus_manifest(self) -> dict[str, Any]:
        """Manifest of the corpus that the run was trained on."""
        return self._read(CORPUS)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the run was trained with."""
        return load_tokenizer(self.path / TOKENIZER)

    def reported_step(self, report: str = "report") -> int | None:
        """The step that the report in a directory of the run is of; None where there is none."""
        if not (self.path / report / "report.json").is_file():
            return None
        return self._read(f"{report}/report.json")["step"]

    def differences(self, config: Config) -> list[str]:
        """What is not as in ``config``, setting by setting."""
        there = _flat(self._read(CONFIG))
        # Through JSON, as what is compared has been.
        here = _flat(json.loads(json.dumps(configs.to_json(config))))
        return [
            f"{name} is {_show(there, name)} there and {_show(here, name)} here"
            for name in sorted(there.keys() | here.keys())
            if _show(there, name) != _show(here, name)
        ]

    def require_config(self, config: Config) -> None:
        """Raise `UserError` naming what differs where this is the run of another config."""
        differing = self.differences(config)
        if differing:
            raise UserError(
                f"{self.path} holds a run of another config: {'; '.join(differing)}; "
                "name another directory with --run-dir"
            )

    def require_corpus(self, corpus: Corpus) -> None:
        """Raise `UserError` where this run was trained on other documents."""
        manifest = self.corpus_manifest()
        if manifest["splits"] != corpus.manifest["splits"]:
            raise UserError(
                f"{self.path} was trained on other documents: {manifest['source']['name']} has "
                "changed since; start anew with another --run-dir"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other training processes out, until the end of the block or of the process.

        Raises:
            UserError: if one is in.
        """
        with open(self.path / CONFIG) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another process is training this run") from None
            yield

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / name} cannot be read: {error}") from error


def find_run(path: Path) -> RunDir | None:
    """The run at ``path``; None where a new one can be made.

    Raises:
        UserError: where there is something else.
    """
    if (path / CONFIG).is_file():
        return RunDir(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(
            f"{path} exists and is no run directory; nothing is overwritten, name another one "
            "with --run-dir"
        )
    return None


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots."""
    flat = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def _show(record: dict[str, Any], name: str) -> str:
    return json.dumps(record[name]) if name in record else "absent"
