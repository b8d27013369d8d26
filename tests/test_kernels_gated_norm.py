"""Gate and norm: the Pallas kernels equal the definition, and lower for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.gated_norm import gpu, xla
from tests.lowering import count_triton_kernels


def operands(batch: int, length: int, width: int):
    rng = np.random.default_rng(0)
    shapes = [(batch, length, width)] * 3 + [(width,)]
    *rows, dout, scale = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes)
    return (*rows, scale), dout


def values_and_gradients(run, inputs, dout):
    values, pull = jax.vjp(lambda *x: run(*x, 1e-6), *inputs)
    return values, *pull(dout)


def test_pallas_equals_the_definition_values_and_gradients():
    """Also where the rows do not fill the last program."""
    inputs, dout = operands(3, 43, 128)
    wants = values_and_gradients(xla.gated_norm, inputs, dout)
    gots = values_and_gradients(partial(gpu.gated_norm, interpret=True), inputs, dout)
    for got, want in zip(gots, wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_pallas_lowers_for_cuda():
    inputs, dout = operands(1, 64, 1024)
    run = partial(values_and_gradients, gpu.gated_norm)
    assert count_triton_kernels(run, inputs, dout) == 2
