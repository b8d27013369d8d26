"""Softmax attention: the whole score matrix is the definition, blocks equal it."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.attention import attention, gpu
from hybrid_lm.kernels.dispatch import on_gpu
from tests.lowering import count_mosaic_gpu_kernels
from tests.numerics import assert_close, jit, random_weights, weighted_sum

BATCH, LENGTH, HEADS, K, P = 2, 29, 4, 6, 5


@dataclass(frozen=True)
class Case:
    """Keys before the row, key/value heads, window, and whether documents are packed."""

    cached: int
    kv_heads: int
    window: int | None
    packed: bool


CASES = [
    Case(cached=0, kv_heads=4, window=None, packed=False),
    Case(cached=0, kv_heads=2, window=7, packed=True),
    Case(cached=5, kv_heads=1, window=None, packed=True),
    Case(cached=6, kv_heads=2, window=7, packed=False),
]


def operands(case: Case, dtype: str) -> tuple[np.ndarray, ...]:
    """q, k and v as ``dtype`` can hold them, in float64; some scores are large."""
    rng = np.random.default_rng(0)
    keys = (BATCH, case.cached + LENGTH, case.kv_heads)
    scale = np.exp(rng.normal(size=(BATCH, LENGTH, 1, 1)))
    q = scale * rng.normal(size=(BATCH, LENGTH, HEADS, K))
    kv = rng.normal(size=(*keys, K)), rng.normal(size=(*keys, P))
    return tuple(np.asarray(jnp.asarray(a, dtype), np.float64) for a in (q, *kv))


def first_keys(case: Case) -> np.ndarray | None:
    """starts_BL: documents of one to some ten tokens, the first of row 0 with keys in the cache."""
    if not case.packed:
        return None
    is_start_BL = np.random.default_rng(1).random((BATCH, LENGTH)) < 0.3
    place_L = np.arange(case.cached, case.cached + LENGTH)
    oldest_B1 = np.array([[case.cached // 2], [case.cached]])
    starts_BL = np.maximum.accumulate(np.where(is_start_BL, place_L, oldest_B1), axis=1)
    return starts_BL.astype(np.int32)


def by_loops(case: Case, q, k, v) -> np.ndarray:
    """Outputs, written down in plain loops."""
    starts_BL, y = first_keys(case), np.zeros((*q.shape[:3], P))
    for b in range(BATCH):
        for i in range(LENGTH):
            stop = case.cached + i + 1
            start = 0 if starts_BL is None else starts_BL[b, i]
            if case.window is not None:
                start = max(start, stop - case.window)
            for h in range(HEADS):
                g = h // (HEADS // case.kv_heads)
                weights = np.exp(k[b, start:stop, g] @ q[b, i, h] / np.sqrt(K))
                y[b, i, h] = weights @ v[b, start:stop, g] / weights.sum()
    return y


def values_and_gradients(case, inputs, weights, dtype, **how):
    """Outputs and the gradients of q, k and v."""
    inputs = [jnp.asarray(a, dtype) for a in inputs]

    def loss(inputs):
        y_BLHP = attention(*inputs, first_keys(case), window=case.window, **how)
        return weighted_sum(y_BLHP, weights), y_BLHP

    gradients, values = jit(jax.grad(loss, has_aux=True))(inputs)
    return jax.device_get((values, gradients))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_reference_is_the_definition(case: Case):
    inputs = operands(case, "float32")
    values = attention(*inputs, first_keys(case), window=case.window, implementation="reference")
    assert_close(values, by_loops(case, *inputs), 1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_blocks_equal_the_reference_in_values_and_gradients(case: Case):
    weights = random_weights(np.random.default_rng(2), np.empty((BATCH, LENGTH, HEADS, P)))
    # The cotangent, too, is one that bfloat16 can hold.
    weights = [np.asarray(jnp.asarray(w.real, jnp.bfloat16), np.float64) for w in weights]
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.005)):
        form = partial(values_and_gradients, case, operands(case, dtype), weights)
        with jax.enable_x64(True):
            truth = form("float64", implementation="reference")
        assert_close(form(dtype, implementation="xla", chunk_size=8), truth, tolerance)


def test_scores_beyond_the_precision_of_float32_give_finite_values_and_gradients():
    """There, scores that are computed twice differ by more than exp can take."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 512, 2, 8)), jnp.float32) for _ in range(3))

    def loss(q, k, v):
        y_BLHP = attention(q, k, v, chunk_size=128, implementation="xla")
        return y_BLHP.sum(), y_BLHP

    values_and_gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))
    for scale in (1e3, 1e6, 1e9):
        leaves = jax.tree.leaves(values_and_gradients(scale * q, scale * k, v))
        assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.skipif(on_gpu(), reason="there it runs")
def test_naming_an_implementation_that_cannot_run_is_an_error():
    x_BLHK = jnp.zeros((1, 8, 1, 8), jnp.bfloat16)
    with pytest.raises(UserError, match="'cudnn' cannot run here: the device is not a GPU"):
        attention(x_BLHK, x_BLHK, x_BLHK, implementation="cudnn")
    with pytest.raises(UserError, match="'pallas' cannot run here: the device is not a Hopper GPU"):
        attention(x_BLHK, x_BLHK, x_BLHK, implementation="pallas")


@pytest.mark.parametrize("packed", [False, True])
def test_the_kernels_lower_for_hopper(packed):
    x_BLHK = jax.ShapeDtypeStruct((1, 256, 2, 64), jnp.bfloat16)
    starts_BL = np.arange(256, dtype=np.int32)[None] // 100 * 100 if packed else None

    def total(q, k, v):
        return gpu.attention(q, k, v, starts_BL).astype(jnp.float32).sum()

    gradients = jax.grad(total, (0, 1, 2))
    assert count_mosaic_gpu_kernels(gradients, x_BLHK, x_BLHK, x_BLHK) == 2
