"""The whole training step of a config: speed, memory, compile time, and where the time goes."""

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_lm import config as configs
from hybrid_lm.bench.profile import device_ms
from hybrid_lm.bench.results import Form, Row
from hybrid_lm.config import Config
from hybrid_lm.data.config import DataConfig
from hybrid_lm.data.pipeline import train_batches
from hybrid_lm.data.prepare import prepare
from hybrid_lm.data.tokenizers import ByteTokenizer
from hybrid_lm.model import Model, count
from hybrid_lm.optimizer import make_optimizer
from hybrid_lm.step import BATCH_KEYS, abstract_batch, abstract_state, init_state, jitted_step
from hybrid_lm.throughput import product_flops_per_s

_STEPS = 5  # dispatched together, as in training
_SAMPLES = 3
_INPUTS = 50


@dataclass(frozen=True)
class Step:
    """Random tokens, through the step that training runs.

    With ``--output``, rows are added to those of the same device and versions that are there.
    """

    config: tuple[str, ...] = tuple(
        f"exp/bench_step.py:{stack}-{length}"
        for stack in ("hybrid", "attention", "mamba2")
        for length in ("8k", "32k")
    )
    """Config files, or FILE:POINT of a study."""
    documents: int = 1
    """Documents of equal length in a row; 1: rows are not packed, and the model is told so."""
    parts: bool = False
    """Also tell the time of each kind of block, of MLPs, head and optimizer, of a program compiled
    for it: the profiler cannot tell kernels of a CUDA graph apart."""

    def form(self) -> Form:
        """Rows are of a config and of so many documents a row."""
        return Form(("config", "documents a row"))

    def rows(self) -> list[Row]:
        programs = {name: self._program(name) for name in self.config}
        # Compiling takes far longer than running, and one program at a time uses few cores.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda program: program.compile(self.parts), programs.values()))
        return [self._row(name, program) for name, program in programs.items()]

    def _program(self, name: str) -> "_Program":
        config = configs.load(name)
        packing: Any = {"pack": self.documents > 1, "max_segments": self.documents}
        return _Program(replace(config, data=replace(config.data, **packing)))

    def _row(self, name: str, program: "_Program") -> Row:
        config, model = program.config, program.model
        rows, length = config.train.batch_size, config.train.length
        with jax.set_mesh(program.mesh):
            state: Any = program.init()
            batch = jax.device_put(self._batch(rows, length, model.vocab_size))

            def run(step: Any) -> None:
                nonlocal state
                for _ in range(_STEPS):
                    state, metrics = step(state, batch)
                jax.block_until_ready(metrics)

            run(program.step)
            seconds = []
            for _ in range(_SAMPLES):
                start = time.perf_counter()
                run(program.step)
                seconds.append((time.perf_counter() - start) / _STEPS)
            kinds = dict.fromkeys(key for group in model.plan.groups for key in group.unit)
            parts, by_part = (*kinds, "mlp", "embedding", "head", "optimizer"), {}
            if self.parts:
                run(program.apart)
                by_part = device_ms(program.apart, lambda: run(program.apart), parts, _STEPS)
        tokens_per_s = rows * length / statistics.median(seconds)
        flops = 3 * model.flops_per_token(length, jnp.dtype(config.train.dtype))
        product = product_flops_per_s(config.train.dtype)
        memory = program.step.memory_analysis()
        assert memory is not None, "every backend reports what its programs hold"
        row = {
            "config": name,
            "parameters": f"{count(model.abstract_params()) / 1e6:.1f}M",
            "rows": f"{rows} x {length}",
            "documents a row": self.documents,
            "tokens/s": round(tokens_per_s),
            "step ms": 1e3 * statistics.median(seconds),
            "MFU": tokens_per_s * flops / (product * program.mesh.size),
            "of TFLOP/s": product / 1e12,
            "GiB": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30,
            "compile s": program.compile_s,
        }
        row |= {f"{part} ms": by_part[part] for part in parts if part in by_part}
        if None in by_part:
            row["other ms"] = by_part[None]
        return row | {"data ms": _input_ms(config)}

    def _batch(self, rows: int, length: int, vocab_size: int) -> dict[str, np.ndarray]:
        tokens_BL = np.random.default_rng(0).integers(0, vocab_size, (rows, length))
        own = -(-length // self.documents)
        place_L = np.arange(length)
        arrays = (tokens_BL, np.roll(tokens_BL, -1, 1), 1 + place_L // own, place_L % own)
        return {
            key: np.broadcast_to(array, (rows, length)).astype(np.int32)
            for key, array in zip(BATCH_KEYS, arrays, strict=True)
        }


class _Program:
    """The training step of a config.

    Attributes:
        step: the compiled step; apart: the same outside CUDA graphs; init: what makes the state
            they start from.
        compile_s: seconds that compiling the step took, beside the other programs.
    """

    step: Any
    apart: Any
    init: Any
    compile_s: float

    def __init__(self, config: Config):
        is_bpe = config.data.tokenizer == "bpe"
        vocab_size = config.data.bpe_vocab_size if is_bpe else ByteTokenizer.vocab_size
        self.config, self.mesh = config, config.mesh.build()
        self.model = Model(config.model, vocab_size)

    def compile(self, apart: bool) -> None:
        config, model, mesh = self.config, self.model, self.mesh
        optimizer = make_optimizer(config.optimizer, config.train.steps, model.decays)
        with jax.set_mesh(mesh):
            state = abstract_state(model, optimizer, mesh)
            placed = jax.tree.map(lambda leaf: leaf.sharding, state)
            init = jax.jit(
                lambda: init_state(model, optimizer, jax.random.key(0)), out_shardings=placed
            )
            self.init = init.lower().compile()
            step = jitted_step(model, optimizer, config, state)
            start = time.perf_counter()
            lowered = step.lower(state, abstract_batch(config, mesh))
            self.step = lowered.compile()
            self.compile_s = time.perf_counter() - start
            if apart:
                self.apart = lowered.compile({"xla_gpu_enable_command_buffer": ""})


def _input_ms(config: Config) -> float:
    """Time in which the input pipeline makes a batch, of the default corpus in bytes, packed.

    Training does not wait for it: batches are made while the device works.
    """
    data = DataConfig(cache_dir=config.data.cache_dir)
    batches = train_batches(
        prepare(data),
        length=config.train.length,
        batch_size=config.train.batch_size,
        pack=data.pack,
        max_segments=data.max_segments,
        seed=0,
    )
    next(batches)
    start = time.perf_counter()
    for _ in range(_INPUTS):
        next(batches)
    return 1e3 * (time.perf_counter() - start) / _INPUTS
