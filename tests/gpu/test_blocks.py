"""What Linformer and Nyström take from the GPU, against float64.

cuDNN subtracts from a score's gradient what it finds in outputs rounded to bf16: where queries see
but one key, gradients of 0 are of the size of that rounding. It also adds up the gradient of a
query in no fixed order, so its repeats are not compared.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels import block_scan
from hybrid_lm.kernels.attention.masked import masked_attention
from hybrid_lm.kernels.block_scan import LOW
from hybrid_lm.kernels.pseudo_inverse import pseudo_inverse
from tests.numerics import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


def value_and_gradients(operation, cotangent, *operands):
    value, pull = jax.vjp(operation, *operands)
    return value, *pull(cotangent.astype(value.dtype))


def matches(got, want, tolerance):
    got, want = ([np.asarray(x, np.float64) for x in jax.tree.leaves(xs)] for xs in (got, want))
    assert_close(got, want, tolerance)


def matches_float64(exact, fast, operands, cotangent, dtype):
    """``exact`` in float64 and ``fast`` on the same numbers."""
    operands = [np.asarray(jnp.asarray(x, dtype), np.float64) for x in operands]
    with jax.enable_x64(True):
        want = jax.jit(partial(value_and_gradients, exact, jnp.asarray(cotangent)))(*operands)
        want = jax.device_get(want)
    run = jax.jit(partial(value_and_gradients, fast, jnp.asarray(cotangent, jnp.float32)))
    got = jax.device_get(run(*(jnp.asarray(x, dtype) for x in operands)))
    matches(got, want, 0.005)
    if dtype == jnp.float32:
        again = jax.device_get(run(*(jnp.asarray(x, dtype) for x in operands)))
        assert all(np.array_equal(x, y) for x, y in zip(got, again, strict=True))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("queries", "keys", "dim"), [(128, 384, 128), (64, 258, 32)])
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


@pytest.mark.parametrize("chunks", [128, 130, 37])
@pytest.mark.parametrize("name", ["carry", "merge"])
def test_scans(name, chunks):
    rng = np.random.default_rng(0)
    shape = (2, chunks, 16, 4, 128)
    keeps_BnM = jnp.asarray(rng.random(shape[:3]) < 0.95)
    values, start = rng.normal(size=shape), rng.normal(size=shape[:1] + shape[2:])
    if name == "carry":
        operands = [values, start]
    else:
        log_mass, start_log_mass = rng.normal(size=shape[:4]), rng.normal(size=start.shape[:3])
        log_mass[rng.random(log_mass.shape) < 0.2] = LOW
        start_log_mass[0] = LOW
        operands = [log_mass, values, start_log_mass, start]
    operands = [np.float32(x) for x in operands]

    def run(implementation, dtype):
        def gradients(*operands):
            scan = getattr(block_scan, name)
            named = partial(scan, keeps_BnM, implementation=implementation)
            results, pull = jax.vjp(named, *operands)
            cosines = jax.tree.map(lambda x: np.cos(np.arange(x.size)).reshape(x.shape), results)
            return results, pull(jax.tree.map(lambda x: jnp.asarray(x, dtype), cosines))

        return jax.device_get(jax.jit(gradients)(*(jnp.asarray(x, dtype) for x in operands)))

    with jax.enable_x64(True):
        want = run("xla", jnp.float64)
    got = run("pallas", jnp.float32)
    matches(got, want, 1e-5)
    again = run("pallas", jnp.float32)
    equal = map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(again))
    assert all(equal)
