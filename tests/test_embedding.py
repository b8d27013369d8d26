"""The embedding and its gradient, against indexing and a float64 sum."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.embedding import embed
from hybrid_lm.kernels.token_sums import gpu, reference
from tests.lowering import count_triton_kernels


@pytest.mark.parametrize("length", [3, 1024, 1500])
def test_embedding_and_gradient(length):
    rng = np.random.default_rng(0)
    table_VD = rng.normal(size=(7, 4)).astype(np.float32)
    tokens_BL = rng.integers(0, 6, size=(2, length))  # the last row is never looked up
    dx_BLD = rng.normal(size=(2, length, 4)).astype(np.float32)
    x_BLD, vjp = jax.vjp(lambda table: embed(table, tokens_BL, jnp.float32), table_VD)
    np.testing.assert_array_equal(x_BLD, table_VD[tokens_BL])
    expected_VD = np.zeros((7, 4))
    np.add.at(expected_VD, tokens_BL, dx_BLD.astype(np.float64))
    np.testing.assert_allclose(vjp(dx_BLD)[0], expected_VD, rtol=1e-5, atol=1e-4)


def test_gradient_of_bfloat16_rows_is_summed_in_float32():
    """4,096 ones: a sum in bfloat16 stops at 256."""
    tokens_BL = np.zeros((1, 4096), np.int32)
    x_BLD: Any
    x_BLD, vjp = jax.vjp(lambda table: embed(table, tokens_BL, jnp.bfloat16), jnp.ones((2, 1)))
    assert x_BLD.dtype == jnp.bfloat16
    (gradient_VD,) = vjp(jnp.ones_like(x_BLD))
    assert gradient_VD.dtype == jnp.float32
    np.testing.assert_array_equal(gradient_VD, [[4096.0], [0.0]])


def test_sums_over_sorted_tokens_equal_the_definition():
    """Runs within a span, over all spans, and over some; rows that do not fill the last span."""
    rng = np.random.default_rng(0)
    shape = (2, 75)
    sums = jax.jit(lambda *operands: gpu.token_sums(*operands, 50, interpret=True))
    for tokens_BL in (
        rng.integers(0, 50, shape),
        np.full(shape, 3),
        rng.integers(0, 2, shape) * 49,
    ):
        values_BLD = jnp.asarray(rng.normal(size=(*shape, 128)), jnp.float32)
        operands = values_BLD, jnp.asarray(tokens_BL, jnp.int32)
        want_VD = reference.token_sums(*operands, 50)
        np.testing.assert_allclose(sums(*operands), want_VD, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_they_lower_for_cuda():
    def sums(values_BLD, tokens_BL):
        return gpu.token_sums(values_BLD, tokens_BL, 300)

    tokens_BL = jnp.zeros((2, 2048), jnp.int32)
    assert count_triton_kernels(sums, jnp.zeros((2, 2048, 256), jnp.bfloat16), tokens_BL) == 3
