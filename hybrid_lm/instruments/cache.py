"""Measured arrays on disk, so that an evaluation that is cut short goes on where it was."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hybrid_lm.errors import UserError

Arrays = dict[str, np.ndarray]

_KEY = "key"


class Cache:
    """One file per name in a directory, each of one key."""

    def __init__(self, directory: Path):
        self.directory = directory

    def get(self, name: str, key: dict[str, Any], measure: Callable[[], Arrays]) -> Arrays:
        """The arrays kept under ``name`` and ``key``, else those that ``measure`` returns.

        Raises:
            UserError: if they cannot be written.
        """
        path, digest = self._path(name), _digest(key)
        kept = _read(path, digest)
        if kept is not None:
            return kept
        arrays = measure()
        writing = path.with_suffix(".writing.npz")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            content: dict[str, Any] = {_KEY: np.array(digest), **arrays}
            np.savez(writing, **content)
            os.replace(writing, path)
        except OSError as error:
            raise UserError(f"what was measured cannot be kept: {error}") from error
        return arrays

    def holds(self, name: str, key: dict[str, Any]) -> bool:
        """Whether `get` would measure nothing."""
        return _read(self._path(name), _digest(key)) is not None

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}.npz"


def _digest(key: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _read(path: Path, digest: str) -> Arrays | None:
    """None where there is nothing of this key, or nothing whole."""
    try:
        with np.load(path) as file:
            if file[_KEY].item() != digest:
                return None
            return {name: file[name] for name in file.files if name != _KEY}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
