"""Chunk-invariant: the size of internal chunks or blocks changes no value and no gradient."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.laws.cases import (
    Case,
    defaults,
    parameters,
    random_x,
    rows_context,
    run,
)
from tests.numerics import assert_close, jit, random_weights, weighted_sum

BATCH, LENGTH = 2, 40


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "case",
    [case for case in defaults() if hasattr(case.config, "chunk_size")],
    ids=str,
)
def test_chunk_size_changes_nothing(case: Case):
    rng = np.random.default_rng(0)
    params = parameters(case.config)
    ctx = rows_context(case.config, rng, BATCH, LENGTH)
    x_BLD = random_x(rng, BATCH, LENGTH)
    shapes = jax.eval_shape(lambda: run(case.config, params, x_BLD, ctx))
    weights = random_weights(rng, shapes)

    def values_and_gradients(chunk_size):
        config = dataclasses.replace(case.config, chunk_size=chunk_size)

        def loss(params, x_BLD):
            values = run(config, params, x_BLD, ctx)
            return weighted_sum(values, weights), values

        return jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(params, x_BLD)

    assert LENGTH < 64
    one_chunk = values_and_gradients(64)
    for chunk_size in (1, 7):
        assert_close(values_and_gradients(chunk_size), one_chunk, 1e-9)
