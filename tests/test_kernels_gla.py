"""Gated linear attention: decays beyond the range of float32, and its Pallas kernels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.gla import gla, gpu
from tests.lowering import count_triton_kernels
from tests.numerics import assert_close, jit

BATCH, HEADS, K, P = 2, 2, 16, 32
ignore_deprecation = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


@pytest.mark.thorough
def test_channels_that_forget_at_once_leave_the_others_exact():
    """Over a chunk, exp of the summed logs spans e^-5000 to 1, and its inverse is not finite."""
    rng = np.random.default_rng(0)
    q_BLHK, k_BLHK, v_BLHP = (jnp.asarray(rng.normal(size=(1, 130, 2, 8))) for _ in range(3))
    log_decay_BLHK = -jnp.asarray(rng.choice([0.0, 1e-3, 1.0, 80.0], size=k_BLHK.shape))
    operands = (q_BLHK, k_BLHK, v_BLHP, log_decay_BLHK)
    assert_close(gla(*operands), gla(*operands, implementation="reference"), 1e-5)


def operands(length: int, dtype=jnp.float32):
    """q, k, v, log decay, initial state, and cotangents of the outputs and last state."""
    rng = np.random.default_rng(length)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    per_key, values = (BATCH, length, HEADS, K), normal(BATCH, length, HEADS, P)
    state = normal(BATCH, HEADS, K, P)
    qkv = normal(*per_key), normal(*per_key), values
    inputs = *(x.astype(dtype) for x in qkv), -jnp.exp(normal(*per_key) - 1), state
    return inputs, (normal(*values.shape), normal(*state.shape))


def values_and_gradients(op, resets_BL, cotangents, *inputs):
    def run(*inputs):
        *inputs, state = inputs
        return op(*inputs, resets_BL, state)

    values, pull = jax.vjp(run, *inputs)
    return *values, *pull(cotangents)


def starts(length: int) -> np.ndarray:
    return np.random.default_rng(1).random((BATCH, length)) < 0.1


# Long enough for several spans of the walk; channels in several blocks.
@ignore_deprecation
@pytest.mark.parametrize(
    ("length", "packed"), [(140, True), pytest.param(32, False, marks=pytest.mark.thorough)]
)
def test_the_kernels_equal_the_definition(monkeypatch, length, packed):
    for size, smaller in {"_CHUNK": 8, "_KEYS": 8, "_COLUMNS": 16}.items():
        monkeypatch.setattr(gpu, size, smaller)
    inputs, cotangents = operands(length)
    resets_BL = starts(length) if packed else None
    forms = partial(gpu.gla, interpret=True), partial(gla, implementation="reference")
    got, want = (
        jit(partial(values_and_gradients, op, resets_BL, cotangents))(*inputs) for op in forms
    )
    assert_close(got, want)


@ignore_deprecation
def test_the_kernels_lower_for_cuda():
    inputs, cotangents = operands(600, jnp.bfloat16)
    run = partial(values_and_gradients, gpu.gla, starts(600), cotangents)
    assert count_triton_kernels(run, *inputs) == 9
