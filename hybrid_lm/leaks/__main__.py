"""The leak board: for every mixer, what reaches an output that must not.

python -m hybrid_lm.leaks [--output docs/leaks.md]
"""

import math
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from hybrid_lm import mixers
from hybrid_lm.cli import arguments, parse
from hybrid_lm.errors import exit_on_user_error
from hybrid_lm.leaks.measures import LENGTH, Probe, resized
from hybrid_lm.leaks.noise import SYMBOLS, trained_losses
from hybrid_lm.leaks.published import FORMS
from hybrid_lm.mixers import MixerConfig

# Many chunks, blocks and heads in a short row.
SIZES = {
    "heads": 2,
    "state_size": 8,
    "head_dim": 8,
    "chunk_size": 8,
    "block_size": 4,
    "features": 16,
    "slots": 4,
    "landmarks": 4,
    "buckets": 4,
    "bucket_window": 4,
}
COLUMNS = ("mixer", "suffix test", "Jacobian", "noise loss", "packing", "hand-off")
FLOOR = math.log(SYMBOLS)
LEGEND = f"""\
* suffix test: largest change of an output when the tokens after it are drawn anew, over the RMS
  output;
* Jacobian: largest derivative of an output by a later token, over the largest by any;
* noise loss: nats per token, with its standard error, after {{steps}} steps of training on
  {SYMBOLS} uniform random symbols: nothing causal is below ln {SYMBOLS} = {FLOOR:.4f};
* packing: relative RMSE of documents packed in a row against the same documents run apart;
* hand-off: relative RMSE of a row in parts, states handed on, against one pass.

float32, one layer, {LENGTH} tokens. **Bold**: more than rounding, or below ln {SYMBOLS} by over 3
standard errors. "as published": the form of the paper put into a causal model as it is
(`hybrid_lm/leaks/published.py`); it has no state and knows no documents.
"""


@dataclass(frozen=True)
class Options:
    """Where the board goes, and how long is trained on noise."""

    output: Path | None = None
    """Markdown file to write."""
    steps: int = 600
    """Steps of training on noise."""


def row(name: str, config: MixerConfig, steps: int, *, has_state: bool) -> tuple[str, ...]:
    """The cells of one mixer."""
    probe = Probe(config)
    losses = trained_losses(config, length=LENGTH, steps=steps)
    mean, error = losses.mean(), losses.std(ddof=1) / math.sqrt(losses.size)
    noise = _cell(f"{mean:.4f} ± {error:.4f}", mean < FLOOR - 3 * error)
    if not has_state:
        packing = hand_off = "–"
    else:
        packing = _error(probe.packing()) if config.packable else "rows are not packed"
        hand_off = _error(probe.hand_off())
    return name, _error(probe.suffix()), _error(probe.jacobian()), noise, packing, hand_off


def _error(value: float) -> str:
    return _cell("0" if value == 0 else f"{value:.1e}", value > 1e-5)


def _cell(text: str, bad: np.bool | bool) -> str:
    return f"**{text}**" if bad else text


def main() -> None:
    options = parse(Options, arguments(), description=__doc__ or "")
    board = [(key, resized(mixers.get(key)(), SIZES), True) for key in mixers.names()]
    board += [(f"{key}, as published", form(length=LENGTH), False) for key, form in FORMS.items()]
    rows = []
    for name, config, has_state in track(board, console=Console(stderr=True), transient=True):
        rows.append(row(name, config, options.steps, has_state=has_state))
    table = Table(*COLUMNS)
    for cells in rows:
        table.add_row(*(cell.replace("**", "") for cell in cells))
    Console().print(table)
    if options.output is not None:
        lines = [
            "# The leak board",
            "",
            f"`python -m hybrid_lm.leaks --output {options.output}`, jax {jax.__version__} on "
            f"{jax.devices()[0].device_kind}.",
            "",
            f"| {' | '.join(COLUMNS)} |",
            f"| {' | '.join('---' for _ in COLUMNS)} |",
            *(f"| {' | '.join(cells)} |" for cells in rows),
            "",
            LEGEND.format(steps=options.steps),
        ]
        options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    exit_on_user_error(main)
