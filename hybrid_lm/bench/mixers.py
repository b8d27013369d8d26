"""One layer of every registered mixer: time and memory by length."""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_lm import mixers
from hybrid_lm.bench.processes import Program, in_processes, load, out_of_memory, program
from hybrid_lm.bench.results import Form, Row, markdown
from hybrid_lm.bench.timing import measured
from hybrid_lm.errors import UserError
from hybrid_lm.mixers import Context, MixerConfig

MEASURES = ("forward", "forward + backward")


@dataclass(frozen=True)
class Mixers:
    """Every registered mixer, and softmax attention with a window of 1024, at each length.

    Compiled side by side in processes of their own; on GPUs, XLA takes products from cuBLAS alone.
    What fails says so in its row, and stops no other. With ``--output``, rows are added to those
    of the same device, versions and settings that are there already.
    """

    width: int = 1024
    """Model width."""
    batch: int = 1
    """Rows."""
    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Tokens of a row."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the activations."""
    only: tuple[str, ...] = ()
    """Keys of the mixers to time; none means all."""

    def form(self) -> Form:
        """Rows are of a mixer and a length."""
        settings = {"width": self.width, "batch": self.batch, "dtype": self.dtype}
        return Form(("mixer", "length"), settings, by_length)

    def rows(self) -> list[Row]:
        unknown = [key for key in self.only if key not in mixers.names()]
        if unknown:
            raise UserError(f"no mixer {unknown[0]!r}; there are: {', '.join(mixers.names())}")
        configs = {key: mixers.get(key)() for key in self.only or mixers.names()}
        if "attention" in configs:
            window = dataclasses.replace(configs["attention"], window=1024)
            configs["attention, window 1024"] = window
        cases = [(name, length) for name in configs for length in self.lengths]
        programs = in_processes(self.compiled, [(configs[name], at) for name, at in cases])
        leaves = {
            name: jax.tree.leaves(nnx.state(config.build(self.width, nnx.Rngs(0))))
            for name, config in configs.items()
        }
        return [
            self._row(name, length, leaves[name], compiled)
            for (name, length), compiled in zip(cases, programs, strict=True)
        ]

    def compiled(self, config: MixerConfig, length: int) -> dict[str, Program]:
        """The programs of one mixer, by what they measure, to be loaded in another process.

        They take the leaves of its parameters, and x_BLD.
        """
        graph, params = nnx.split(nnx.eval_shape(lambda: config.build(self.width, nnx.Rngs(0))))
        leaves, tree = jax.tree.flatten(params)
        shape = (self.batch, length, self.width)
        x_BLD = jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype))

        def forward(leaves, x_BLD):
            ctx = Context.of_documents(self.batch, length, dtype=self.dtype)
            return nnx.merge(graph, jax.tree.unflatten(tree, leaves))(x_BLD, ctx)[0]

        def both(leaves, x_BLD):
            y_BLD, pull = jax.vjp(forward, leaves, x_BLD)
            return pull(jnp.ones_like(y_BLD))

        forms = zip(MEASURES, (forward, both), strict=True)
        return {name: program(function, leaves, x_BLD) for name, function in forms}

    def _row(
        self,
        name: str,
        length: int,
        leaves: list[jax.Array],
        programs: dict[str, Program] | Exception,
    ) -> Row:
        shape = (self.batch, length, self.width)
        x_BLD = jax.random.normal(jax.random.key(1), shape, self.dtype)
        row: Row = {"mixer": name, "length": length}
        for measure in MEASURES:
            try:
                if isinstance(programs, Exception):
                    raise programs
                timing = measured(load(programs[measure]), leaves, x_BLD)
            except Exception as error:  # the other rows are still worth their time
                text = str(error) or repr(error)
                reason = "out of memory" if out_of_memory(error) else "failed"
                row |= {f"{measure} ms": reason, f"{measure} MiB": reason}
                print(f"{name}, {length}, {measure}: {text[:300]}", file=sys.stderr)
            else:
                row |= {f"{measure} ms": timing.ms, f"{measure} MiB": round(timing.peak_mib)}
        return row


def by_length(rows: list[Row]) -> list[str]:
    """A table for each measure, of a row per mixer: ms and MiB at each length, fastest first."""
    lines = ["ms: median. MiB: what the device holds at once: inputs, outputs and temporaries.", ""]
    lengths = sorted({row["length"] for row in rows})
    cells = {(row["mixer"], row["length"]): row for row in rows}

    def slowness(name: str) -> tuple[bool, float]:
        """At the longest length, where that was measured."""
        ms = cells.get((name, lengths[-1]), {}).get(f"{MEASURES[-1]} ms")
        return not isinstance(ms, float), ms if isinstance(ms, float) else 0.0

    names = sorted(dict.fromkeys(row["mixer"] for row in rows), key=slowness)
    for measure in MEASURES:
        table = []
        for name in names:
            row: Row = {"mixer": name}
            for length in lengths:
                cell = cells.get((name, length), {})
                row |= {
                    f"{length:,} {unit}": cell.get(f"{measure} {unit}", "–")
                    for unit in ("ms", "MiB")
                }
            table.append(row)
        lines += [f"{measure.capitalize()}:", "", *markdown(table), ""]
    return lines[:-1]
