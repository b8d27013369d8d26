"""Layers compiled one by one, with parts recomputed, are the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm import mixers
from hybrid_lm.mixers import Context
from hybrid_lm.model import Model, ModelConfig

MODEL = Model(
    ModelConfig(
        layers="conv*3",
        mixers={"conv": mixers.Conv()},
        width=16,
        mlp_width=8,
    ),
    vocab_size=13,
)


@pytest.fixture(scope="module")
def gradients():
    """Of a scalar of all outputs with respect to the parameters, by ``remat`` and ``unroll``."""
    params = jax.jit(MODEL.init)(jax.random.key(0))
    tokens_BL = jnp.asarray(np.random.default_rng(0).integers(0, 13, (2, 9)))

    def run(remat, unroll):
        def scalar(params):
            ctx = Context.of_documents(2, 9)
            exits = MODEL.apply(params, tokens_BL, ctx, remat=remat, unroll=unroll).exits
            return sum(jnp.mean(x_BLD**2) for x_BLD in exits)

        return jax.jit(jax.value_and_grad(scalar))(params)

    return run


@pytest.mark.parametrize("remat", ["dots", pytest.param("block", marks=pytest.mark.thorough)])
def test_unrolled_layers_are_those_of_the_scan(gradients, remat):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
        gradients(remat, True),
        gradients("none", False),
    )
