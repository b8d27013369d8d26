"""The Pallas norms and MLPs on the GPU: float64 truth, odd lengths, extreme inputs, repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.gated_mlp import gated_mlp
from hybrid_lm.kernels.gated_norm import gated_norm
from hybrid_lm.kernels.residual_norm import residual_norm
from hybrid_lm.kernels.rotary import queries_and_keys

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


def check(op, rows, values, shape, scale, dtype, weight_shape=()):
    """``op`` of so many arrays of the shape, a gain and a weight if any, with so many results."""
    rng = np.random.default_rng(0)
    arrays = [scale * rng.normal(size=shape) for _ in range(rows + values)]
    arrays = [np.asarray(jnp.asarray(a, dtype), np.float64) for a in arrays]
    parameters = [np.float64(np.float32(rng.normal(size=shape[-1])))]
    if weight_shape:
        weight = rng.normal(size=weight_shape) * weight_shape[0] ** -0.5
        parameters.append(np.asarray(jnp.asarray(weight, dtype), np.float64))

    def gradients(implementation, inputs, cotangents):
        values, pull = jax.vjp(lambda *x: op(*x, implementation=implementation), *inputs)
        return jax.tree.leaves((values, pull(cotangents)))

    def operands(dtype, wide):
        *given, last = [jnp.asarray(a, dtype) for a in arrays]
        cotangents = (*given[rows:], last) if values > 1 else last
        return (*given[:rows], *(jnp.asarray(p, wide) for p in parameters)), cotangents

    with jax.enable_x64(True):
        want = jax.jit(gradients, static_argnums=0)("reference", *operands("float64", "float64"))
        want = [np.asarray(a) for a in want]
    run = jax.jit(lambda *x: gradients("pallas", *x))
    first = run(*operands(dtype, "float32"))
    for got, truth in zip(first, want, strict=True):
        got = np.asarray(got.astype(jnp.float32), np.float64)
        error = np.sqrt(np.mean((got - truth) ** 2) / np.mean(truth**2))
        assert error <= (0.005 if dtype == "bfloat16" else 1e-5)
    for _ in range(20):
        again = run(*operands(dtype, "float32"))
        assert all(bool((x == y).all()) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "scale"), [((2, 1037, 1024), 1), ((2, 3, 128), 1), ((1, 70, 512), 60)]
)
def test_gated_norm_matches_float64(shape, scale, dtype):
    check(gated_norm, 2, 1, shape, scale, dtype, (shape[-1], shape[-1]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "scale"), [((2, 1024, 512), 1), ((1, 64, 128), 1e4), ((1, 128, 2048), 1)]
)
def test_residual_norm_matches_float64(shape, scale, dtype):
    check(residual_norm, 1, 2, shape, scale, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("rows", "heads", "dim"),
    [((2, 1024), (8, 8), 64), ((1, 64), (1, 1), 128), ((3, 64), (6, 2), 32)],
)
def test_queries_and_keys_match_float64(rows, heads, dim, dtype):
    """At positions whose angles float32 still tells apart from those of float64."""
    positions_BL = np.random.default_rng(1).integers(0, 20, rows).astype(np.int32)
    width = sum(heads) * dim

    def op(x, gain, weight, *, implementation):
        weights = jnp.split(weight.reshape(width, -1, dim), heads[:1], axis=1)
        scales = gain[:dim], gain[dim : 2 * dim]
        parts = queries_and_keys(
            x, weights, scales, positions_BL, 1e4, implementation=implementation
        )
        return jnp.concatenate(parts, axis=2).reshape(x.shape)

    check(op, 1, 1, (*rows, width), 1, dtype, (width, width))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "hidden", "recomputes"),
    [((2, 1024, 512), 1408, True), ((2, 1024, 512), 1408, False), ((1, 96, 128), 128, True)],
)
def test_gated_mlp_matches_float64(shape, hidden, recomputes, dtype):
    width = shape[-1]

    def op(x, gain, weight, *, implementation):
        gate, up, down = jnp.split(weight, 3, axis=1)
        options = {"recomputes": recomputes, "implementation": implementation}
        return (gated_mlp(x, gate, up, down.T, **options) * gain).astype(x.dtype)

    check(op, 1, 1, shape, 1, dtype, (width, 3 * hidden))
