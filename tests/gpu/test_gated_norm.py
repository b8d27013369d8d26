"""The Pallas gated norm on the GPU: float64 truth, odd lengths, extreme gates, repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.gated_norm import gpu, xla

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("length", "width", "scale"), [(1037, 1024, 1), (3, 128, 1), (70, 512, 60)]
)
def test_values_and_gradients_match_float64(length, width, scale, dtype):
    rng = np.random.default_rng(0)
    shapes = [(2, length, width)] * 3 + [(width,)]
    *rows, gain = (scale * rng.normal(size=shape) for shape in shapes)
    *rows, dout = (np.asarray(jnp.asarray(a, dtype), np.float64) for a in rows)

    def gradients(run, inputs, dout):
        values, pull = jax.vjp(lambda *x: run(*x, 1e-6), *inputs)
        return values, *pull(dout)

    with jax.enable_x64(True):
        wide = [jnp.asarray(a, jnp.float64) for a in (*rows, gain, dout)]
        want = jax.jit(lambda *x: gradients(xla.gated_norm, x[:-1], x[-1]))(*wide)
        want = [np.asarray(a) for a in want]
    narrow = [jnp.asarray(a, dtype) for a in rows]
    narrow.append(jnp.asarray(gain, jnp.float32))
    run = jax.jit(lambda *x: gradients(gpu.gated_norm, x[:-1], x[-1]))
    first = run(*narrow, jnp.asarray(dout, dtype))
    for got, truth in zip(first, want, strict=True):
        got = np.asarray(got.astype(jnp.float32), np.float64)
        error = np.sqrt(np.mean((got - truth) ** 2) / np.mean(truth**2))
        assert error <= (0.005 if dtype == "bfloat16" else 1e-5)
    for _ in range(20):
        again = run(*narrow, jnp.asarray(dout, dtype))
        assert all(bool((x == y).all()) for x, y in zip(first, again, strict=True))
