"""The whole training step of a config: speed, memory, compile time."""

import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_lm import config as configs
from hybrid_lm.bench.results import Row
from hybrid_lm.model import Model, count
from hybrid_lm.optimizer import make_optimizer
from hybrid_lm.step import BATCH_KEYS, abstract_state, init_state, make_step
from hybrid_lm.throughput import peak

_STEPS = 10


@dataclass(frozen=True)
class Step:
    """Random tokens in packed rows, through the step that training runs."""

    config: str = "exp/hybrid_8k.py"
    """Config file."""
    documents: int = 1
    """Documents of equal length in a row."""
    vocab_size: int = 257
    """Size of the vocabulary (257: bytes)."""

    def rows(self) -> list[Row]:
        config = configs.load(self.config)
        mesh = config.mesh.build()
        model = Model(config.model, self.vocab_size)
        optimizer = make_optimizer(config.optimizer, config.train.steps, model.decays)
        rows, length = config.train.batch_size, config.train.length
        with jax.set_mesh(mesh):
            placed = jax.tree.map(lambda a: a.sharding, abstract_state(model, optimizer, mesh))
            state = jax.jit(
                lambda: init_state(model, optimizer, jax.random.key(0)), out_shardings=placed
            )()
            start = time.perf_counter()
            step = jax.jit(make_step(model, optimizer, config), donate_argnums=0)
            batch = self._batch(rows, length)
            compiled = step.lower(state, batch).compile()
            compile_s = time.perf_counter() - start
            seconds = []
            for _ in range(_STEPS):
                start = time.perf_counter()
                state, metrics = compiled(state, batch)
                jax.block_until_ready(metrics)
                seconds.append(time.perf_counter() - start)
        tokens_per_s = rows * length / statistics.median(seconds[2:])
        flops = 3 * model.flops_per_token(length, jnp.dtype(config.train.dtype))
        memory = compiled.memory_analysis()
        assert memory is not None, "every backend reports what its programs hold"
        held = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        return [
            {
                "config": self.config,
                "parameters": count(state.params),
                "rows": f"{rows} x {length}",
                "tokens/s": round(tokens_per_s),
                "step ms": 1e3 * statistics.median(seconds[2:]),
                "MFU": tokens_per_s * flops / peak(mesh, config.train.dtype).flops_per_s,
                "GiB": held / 2**30,
                "compile s": compile_s,
            }
        ]

    def _batch(self, rows: int, length: int) -> dict[str, jax.Array]:
        tokens_BL = np.random.default_rng(0).integers(0, self.vocab_size, (rows, length))
        own = -(-length // self.documents)
        place_L = np.arange(length)
        arrays = (tokens_BL, np.roll(tokens_BL, -1, 1), 1 + place_L // own, place_L % own)
        batch = {
            key: np.broadcast_to(array, (rows, length)).astype(np.int32)
            for key, array in zip(BATCH_KEYS, arrays, strict=True)
        }
        return jax.device_put(batch)
