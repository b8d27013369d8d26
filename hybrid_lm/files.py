"""Files that are written whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hybrid_lm.errors import UserError


def write_files(directory: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write files by name into a directory, each in one step, in place of earlier ones.

    Raises:
        UserError: if the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # In the same file system, so that the replacement is one step.
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=directory) as work:
            for name, content in contents.items():
                data = content.encode() if isinstance(content, str) else content
                Path(work, name).write_bytes(data)
            for name in contents:
                os.replace(Path(work, name), directory / name)
    except OSError as error:
        raise UserError(f"{directory} cannot be written: {error}") from error
