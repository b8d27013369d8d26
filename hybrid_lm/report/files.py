"""The report's files: written in one step each, and read again."""

import json
import shutil
from contextlib import closing
from pathlib import Path

from hybrid_lm.errors import UserError
from hybrid_lm.files import write_files
from hybrid_lm.report.markdown import to_markdown
from hybrid_lm.report.scalars import to_board
from hybrid_lm.results import Report
from hybrid_lm.tensorboard import Board


def write(report: Report, directory: Path) -> None:
    """Write ``report.json``, ``.md`` and ``.html``, each in one step, in place of earlier ones.

    Raises:
        UserError: if the directory cannot be written.
    """
    from hybrid_lm import page

    texts = {
        "report.json": json.dumps(report.to_json(), indent=2) + "\n",
        "report.md": to_markdown(report),
        "report.html": page.render(report),
    }
    write_files(directory, texts)


def write_events(report: Report, directory: Path) -> None:
    """Write ``tensorboard/`` in place of an earlier one: the report as a run of its own there.

    Raises:
        UserError: if the directory cannot be written.
    """
    events = directory / "tensorboard"
    try:
        if events.exists():
            shutil.rmtree(events)
        with closing(Board(events)) as board:
            to_board(report, board)
    except OSError as error:
        raise UserError(f"{events} cannot be written: {error}") from error


def read(directory: Path) -> Report:
    """The report that `write` left in a directory.

    Raises:
        UserError: if there is none, or of another version.
    """
    path = directory / "report.json"
    try:
        return Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no report of this version: {error!r}") from error
