"""One layer of every registered mixer: time and memory by length."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_lm import mixers
from hybrid_lm.bench.results import Row
from hybrid_lm.bench.timing import compiled_in, measured
from hybrid_lm.errors import UserError
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
    only: tuple[str, ...] = ()
    """Keys of the mixers to time; none means all."""

    def rows(self) -> list[Row]:
        unknown = [key for key in self.only if key not in mixers.names()]
        if unknown:
            raise UserError(f"no mixer {unknown[0]!r}; there are: {', '.join(mixers.names())}")
        configs = {key: mixers.get(key)() for key in self.only or mixers.names()}
        if "attention" in configs:
            window = dataclasses.replace(configs["attention"], window=1024)
            configs["attention, window 1024"] = window
        cases = [(name, length) for name in configs for length in self.lengths]
        # Compiling takes far longer than running, and one program at a time uses one core.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            programs = list(pool.map(lambda case: self._compile(configs[case[0]], case[1]), cases))
        return [
            self._row(name, length, configs[name], compiled)
            for (name, length), compiled in zip(cases, programs, strict=True)
        ]

    def _compile(self, config: MixerConfig, length: int) -> dict[str, tuple[Any, float]]:
        """The programs of one mixer, by what they measure."""
        graph, params = nnx.split(nnx.eval_shape(lambda: config.build(self.width, nnx.Rngs(0))))
        shape = (self.batch, length, self.width)
        x_BLD = jax.ShapeDtypeStruct(shape, jnp.dtype(self.dtype))

        def forward(params, x_BLD):
            ctx = Context.of_documents(self.batch, length, dtype=self.dtype)
            return nnx.merge(graph, params)(x_BLD, ctx)[0]

        def both(params, x_BLD):
            y_BLD, pull = jax.vjp(forward, params, x_BLD)
            return pull(jnp.ones_like(y_BLD))

        functions = {"forward": forward, "forward + backward": both}
        return {name: compiled_in(function, params, x_BLD) for name, function in functions.items()}

    def _row(
        self, name: str, length: int, config: MixerConfig, programs: dict[str, tuple[Any, float]]
    ) -> Row:
        params = nnx.state(config.build(self.width, nnx.Rngs(0)))
        shape = (self.batch, length, self.width)
        x_BLD = jax.random.normal(jax.random.key(1), shape, self.dtype)
        row: Row = {"mixer": name, "length": length}
        for measure, program in programs.items():
            try:
                timing = measured(*program, params, x_BLD)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                row |= {f"{measure} ms": "out of memory", f"{measure} MiB": "out of memory"}
            else:
                row |= {f"{measure} ms": timing.ms, f"{measure} MiB": round(timing.temp_mib)}
        return row
