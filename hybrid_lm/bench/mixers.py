"""One layer of every registered mixer: time and memory by length."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_lm import mixers
from hybrid_lm.bench.results import Row
from hybrid_lm.bench.timing import timed
from hybrid_lm.mixers import Context, MixerConfig


@dataclass(frozen=True)
class Mixers:
    """Every registered mixer, and softmax attention with a window of 1024, at each length."""

    width: int = 1024
    """Model width."""
    batch: int = 1
    """Rows."""
    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Tokens of a row."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the activations."""

    def rows(self) -> list[Row]:
        configs = {key: mixers.get(key)() for key in mixers.names()}
        configs["attention, window 1024"] = dataclasses.replace(configs["attention"], window=1024)
        return [
            self._row(name, config, length)
            for name, config in configs.items()
            for length in self.lengths
        ]

    def _row(self, name: str, config: MixerConfig, length: int) -> Row:
        graph, params = nnx.split(config.build(self.width, nnx.Rngs(0)))
        shape = (self.batch, length, self.width)
        x_BLD = jax.random.normal(jax.random.key(1), shape, self.dtype)
        ctx = Context.of_documents(self.batch, length, dtype=self.dtype)

        def forward(params, x_BLD):
            return nnx.merge(graph, params)(x_BLD, ctx)[0]

        def both(params, x_BLD):
            y_BLD, pull = jax.vjp(forward, params, x_BLD)
            return pull(jnp.ones_like(y_BLD))

        row: Row = {"mixer": name, "length": length}
        measures = {"forward": forward, "forward + backward": both}
        for measure, function in measures.items():
            try:
                timing = timed(function, params, x_BLD)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                row |= {f"{measure} ms": "out of memory", f"{measure} MiB": "out of memory"}
            else:
                row |= {f"{measure} ms": timing.ms, f"{measure} MiB": round(timing.temp_mib)}
        return row
