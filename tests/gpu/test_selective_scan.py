"""The Pallas selective scan on the GPU: float64 truth, odd lengths, extreme decays, repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.diagonal_scan import selective_gpu, selective_scan

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

CASES = {  # B, L, E, N, mean of the step before softplus, scale of A
    "odd": (2, 1037, 300, 16, -2.0, 1.0),
    "short": (1, 3, 32, 16, -2.0, 1.0),
    "small state": (3, 257, 128, 4, -2.0, 1.0),
    "slow decay": (1, 2048, 64, 16, -8.0, 0.1),
    "fast decay": (1, 700, 64, 16, 3.0, 30.0),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_match_float64(case, packed, dtype):
    batch, length, inner, states, mean, scale = CASES[case]
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape)

    inputs = (
        np.asarray(jnp.asarray(normal(batch, length, inner), dtype), np.float64),
        np.logaddexp(0, normal(batch, length, inner) + mean),
        -scale * np.exp(normal(inner, states)),
        normal(batch, length, states),
        normal(batch, length, states),
        normal(batch, inner, states),
    )
    cotangents = (normal(batch, length, inner), normal(batch, inner, states))
    resets_BL = rng.random((batch, length)) < 0.01 if packed else None

    def gradients(scan, inputs, cotangents):
        values, pull = jax.vjp(lambda *x: scan(*x[:5], resets_BL, x[5]), *inputs)
        return *values, *pull(cotangents)

    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in (*inputs, *cotangents)]
        want = jax.jit(
            lambda *x: gradients(
                lambda *y: selective_scan(*y, implementation="reference"), x[:6], x[6:]
            )
        )(*wide)
        want = [np.asarray(x) for x in want]
    narrow = [jnp.asarray(x, jnp.float32) for x in (*inputs, *cotangents)]
    narrow[0] = narrow[0].astype(dtype)
    run = jax.jit(lambda *x: gradients(selective_gpu.selective_scan, x[:6], x[6:]))
    first = run(*narrow)
    for got, truth in zip(first, want, strict=True):
        got = np.asarray(got.astype(jnp.float32), np.float64)
        error = np.sqrt(np.mean((got - truth) ** 2) / np.mean(truth**2))
        assert error <= (0.005 if got.shape == first[0].shape and dtype == "bfloat16" else 1e-5)
    for _ in range(20):
        again = run(*narrow)
        assert all(bool((x == y).all()) for x, y in zip(first, again, strict=True))
