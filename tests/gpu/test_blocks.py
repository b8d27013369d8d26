"""What Linformer and Nyström take from the GPU, against float64: masked attention, the inverse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.attention.masked import masked_attention
from hybrid_lm.kernels.pseudo_inverse import pseudo_inverse
from tests.numerics import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


def value_and_gradients(operation, cotangent, *operands):
    value, pull = jax.vjp(operation, *operands)
    return value, *pull(cotangent.astype(value.dtype))


def matches_float64(exact, fast, operands, cotangent, dtype):
    """``exact`` in float64 and ``fast`` on the same numbers."""
    operands = [np.asarray(jnp.asarray(x, dtype), np.float64) for x in operands]
    with jax.enable_x64(True):
        want = jax.jit(partial(value_and_gradients, exact, jnp.asarray(cotangent)))(*operands)
        want = jax.device_get(want)
    run = jax.jit(partial(value_and_gradients, fast, jnp.asarray(cotangent, jnp.float32)))
    got = jax.device_get(run(*(jnp.asarray(x, dtype) for x in operands)))
    assert_close([np.asarray(x, np.float64) for x in got], list(want), 0.005)
    again = jax.device_get(run(*(jnp.asarray(x, dtype) for x in operands)))
    assert all(np.array_equal(x, y) for x, y in zip(got, again, strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("queries", "keys", "dim"), [(128, 384, 128), (64, 258, 32), (2, 6, 8)])
def test_masked_attention(queries, keys, dim, bias):
    rng = np.random.default_rng(0)
    batch, heads = 5, 3
    own = batch, queries, heads, dim
    operands = rng.normal(size=own), *(rng.normal(size=(batch, keys, heads, dim)) for _ in "kv")
    sees_BLS = rng.random((batch, queries, keys)) < 0.3
    sees_BLS[..., 0] = True
    bias_BLS = jnp.where(jnp.arange(keys) < keys // 2, 0.0, 4.75) * jnp.ones_like(sees_BLS)
    forms = (
        partial(
            masked_attention,
            sees_BLS=jnp.asarray(sees_BLS),
            bias_BLS=bias_BLS if bias else None,
            implementation=implementation,
        )
        for implementation in ("xla", "cudnn")
    )
    matches_float64(*forms, operands, rng.normal(size=own), jnp.bfloat16)


@pytest.mark.parametrize("size", [16, 64])
def test_pseudo_inverse(size):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 40, 3, size, size)) + 3 * np.eye(size)

    # As in the mixer: of a softmax, through which the gradient of a row's sum does not pass.
    def inverse(scores, implementation):
        a = jax.nn.softmax(scores, axis=-1)
        return pseudo_inverse(a, 6, exact=False, implementation=implementation)

    forms = (partial(inverse, implementation=named) for named in ("reference", "pallas"))
    matches_float64(*forms, [scores], rng.normal(size=scores.shape), jnp.float32)
