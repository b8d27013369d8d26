"""Training in bf16 through the kernels follows training through XLA, step by step.

Through XLA in float32, at a peak rate of 1e-4: at higher ones, training amplifies the rounding to
bf16, with kernels or without (docs/kernels.md, "Training step"). And through XLA in bf16, where
nothing but the kernels differs. On the documents that HYBRID_LM_BOOKS names (as --data.source
would), else the default corpus.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import jax
import numpy as np
import pytest

from hybrid_lm import config as configs
from hybrid_lm.data.config import DataConfig
from hybrid_lm.data.pipeline import train_batches
from hybrid_lm.data.prepare import prepare
from hybrid_lm.kernels.dispatch import Implementation
from hybrid_lm.model import Model
from hybrid_lm.optimizer import make_optimizer
from hybrid_lm.step import abstract_batch, abstract_state, init_state, jitted_step

STEPS, ROWS, LENGTH = 200, 4, 2048
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


class Run:
    """Of the benchmark's hybrid, compiled."""

    def __init__(self, corpus, rate: float, **options):
        config = configs.load("exp/bench_step.py:hybrid-8k")
        train = replace(config.train, steps=STEPS, length=LENGTH, batch_size=ROWS, **options)
        optimizer = replace(config.optimizer, learning_rate=rate)
        config = replace(config, train=train, optimizer=optimizer)
        model = Model(config.model, corpus.vocab_size)
        optimizer = make_optimizer(config.optimizer, STEPS, model.decays)
        self.mesh = config.mesh.build()
        with jax.set_mesh(self.mesh):
            state_like = abstract_state(model, optimizer, self.mesh)
            step = jitted_step(model, optimizer, config, state_like)
            self.step = step.lower(state_like, abstract_batch(config, self.mesh)).compile()
            init = jax.jit(lambda: init_state(model, optimizer, jax.random.key(0)))
            self.init = init.lower().compile()

    def losses(self, corpus) -> np.ndarray:
        batches = train_batches(
            corpus, length=LENGTH, batch_size=ROWS, pack=True, max_segments=8, seed=0
        )
        with jax.set_mesh(self.mesh):
            state, found = self.init(), []
            for _ in range(STEPS):
                state, metrics = self.step(state, jax.device_put(next(batches)))
                found.append(metrics.loss)
            return np.asarray(jax.device_get(found))


@pytest.mark.parametrize(
    "dtype, rate, tolerance", [("float32", 1e-4, 0.005), ("bfloat16", 3e-4, 0.001)]
)
def test_bf16_kernels_follow_xla(tmp_path, dtype, rate, tolerance):
    source = os.environ.get("HYBRID_LM_BOOKS", "stdlib")
    corpus = prepare(DataConfig(source=source, cache_dir=str(tmp_path)))
    everywhere: Any = {field.name: "xla" for field in fields(Implementation)}
    through_xla = {"dtype": dtype, "implementation": Implementation(**everywhere), "unroll": False}
    with ThreadPoolExecutor(2) as pool:  # compiling takes longer than running
        runs = pool.map(lambda options: Run(corpus, rate, **options), (through_xla, {}))
        expected, ours = (run.losses(corpus) for run in runs)
    np.testing.assert_allclose(ours, expected, rtol=tolerance)
