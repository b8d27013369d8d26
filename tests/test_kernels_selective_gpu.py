"""The Pallas selective scan: equals the step-by-step reference, and lowers for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.diagonal_scan import selective_gpu, selective_scan
from tests.lowering import count_triton_kernels


def operands(batch: int, length: int, inner: int, states: int):
    rng = np.random.default_rng(length)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    step_BLE = jax.nn.softplus(normal(batch, length, inner) - 2)
    h0_BEN = normal(batch, inner, states)
    bc = normal(batch, length, states), normal(batch, length, states)
    a_EN = -jnp.exp(normal(inner, states))
    cotangents = normal(batch, length, inner), normal(batch, inner, states)
    return (normal(batch, length, inner), step_BLE, a_EN, *bc, h0_BEN), cotangents


@pytest.mark.parametrize(
    ("length", "resets"),
    [
        (13, True),
        pytest.param(8, False, marks=pytest.mark.thorough),
        pytest.param(1, True, marks=pytest.mark.thorough),
    ],
)
def test_pallas_equals_reference_values_and_gradients(monkeypatch, length, resets):
    monkeypatch.setattr(selective_gpu, "_CHUNK", 4)
    monkeypatch.setattr(selective_gpu, "_STRIDE", 2)
    inputs, cotangents = operands(2, length, 33, 2)
    resets_BL = None
    if resets:
        resets_BL = jnp.asarray(np.random.default_rng(1).random((2, length)) < 0.3)

    def values_and_gradients(scan):
        def run(u, step, a, b, c, h0):
            return scan(u, step, a, b, c, resets_BL, h0)

        values, pull = jax.vjp(run, *inputs)
        return *values, *pull(cotangents)

    wants = values_and_gradients(partial(selective_scan, implementation="reference"))
    gots = values_and_gradients(partial(selective_gpu.selective_scan, interpret=True))
    for got, want in zip(gots, wants, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_pallas_lowers_for_cuda():
    inputs, cotangents = operands(1, 8, 32, 2)

    def values_and_gradients(*inputs):
        def run(u, step, a, b, c, h0):
            return selective_gpu.selective_scan(u, step, a, b, c, None, h0)

        return jax.vjp(run, *inputs)[1](cotangents)

    assert count_triton_kernels(values_and_gradients, *inputs) == 6
