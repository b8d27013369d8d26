"""One layer of every registered mixer: time and memory by length."""

import dataclasses
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import serialize_executable

from hybrid_lm import mixers
from hybrid_lm.bench.results import Row
from hybrid_lm.bench.timing import compiled_in, measured
from hybrid_lm.errors import UserError
from hybrid_lm.mixers import Context, MixerConfig


@dataclass(frozen=True)
class Mixers:
    """Every registered mixer, and softmax attention with a window of 1024, at each length.

    Compiled side by side in processes of their own; on GPUs, XLA takes products from cuBLAS alone.
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

    def rows(self) -> list[Row]:
        unknown = [key for key in self.only if key not in mixers.names()]
        if unknown:
            raise UserError(f"no mixer {unknown[0]!r}; there are: {', '.join(mixers.names())}")
        configs = {key: mixers.get(key)() for key in self.only or mixers.names()}
        if "attention" in configs:
            window = dataclasses.replace(configs["attention"], window=1024)
            configs["attention, window 1024"] = window
        cases = [(name, length) for name in configs for length in self.lengths]
        workers = min(os.cpu_count() or 1, len(cases))
        processes = multiprocessing.get_context("spawn")
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # they share the device
        # Compiling takes far longer than running, and threads of one process wait for each other.
        with ProcessPoolExecutor(workers, processes, _without_triton_products) as pool:
            by_case = [pool.submit(self.compiled, configs[name], length) for name, length in cases]
            leaves = {
                name: jax.tree.leaves(nnx.state(config.build(self.width, nnx.Rngs(0))))
                for name, config in configs.items()
            }
            programs = [case.result() for case in by_case]
        return [
            self._row(name, length, leaves[name], compiled)
            for (name, length), compiled in zip(cases, programs, strict=True)
        ]

    def compiled(self, config: MixerConfig, length: int) -> dict[str, tuple[Any, float]]:
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

        functions = {"forward": forward, "forward + backward": both}
        programs = {}
        for name, function in functions.items():
            compiled, compile_s = compiled_in(function, leaves, x_BLD)
            programs[name] = serialize_executable.serialize(compiled), compile_s
        return programs

    def _row(
        self,
        name: str,
        length: int,
        leaves: list[jax.Array],
        programs: dict[str, tuple[Any, float]],
    ) -> Row:
        shape = (self.batch, length, self.width)
        x_BLD = jax.random.normal(jax.random.key(1), shape, self.dtype)
        row: Row = {"mixer": name, "length": length}
        for measure, (serialized, compile_s) in programs.items():
            try:
                device = jax.devices()[:1]  # where it was compiled for
                compiled = serialize_executable.deserialize_and_load(
                    *serialized, execution_devices=device
                )
                timing = measured(compiled, compile_s, leaves, x_BLD)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                row |= {f"{measure} ms": "out of memory", f"{measure} MiB": "out of memory"}
            else:
                row |= {f"{measure} ms": timing.ms, f"{measure} MiB": round(timing.temp_mib)}
        return row


def _without_triton_products() -> None:
    # XLA compiles each product in dozens of ways, to choose: 75 s of processor time for one layer.
    # By cuBLAS alone, which needs no compiling, it is 7 s.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_enable_triton_gemm=false".strip()
