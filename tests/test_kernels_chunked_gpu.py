"""The Pallas kernels of SSD and of the delta rule: equal the definition, and lower for CUDA."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels import spans
from hybrid_lm.kernels.decay_gpu import token_decays
from hybrid_lm.kernels.delta_rule import delta_rule
from hybrid_lm.kernels.delta_rule import gpu as delta_gpu
from hybrid_lm.kernels.ssd import gpu as ssd_gpu
from hybrid_lm.kernels.ssd import ssd
from tests.lowering import count_triton_kernels
from tests.numerics import assert_close, jit

BATCH, HEADS, N, P = 2, 4, 16, 32
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


def operands(length: int, groups: int, *, strengths: bool, dtype=jnp.float32, width: int = P):
    """q, k, v, (beta,) log decay, initial state, and cotangents of the outputs and last state."""
    rng = np.random.default_rng(length)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    k = normal(BATCH, length, groups, N)
    k /= jnp.linalg.norm(k, axis=-1, keepdims=True)
    qkv = normal(BATCH, length, groups, N), k, normal(BATCH, length, HEADS, width)
    by_head = BATCH, length, HEADS
    beta = (jax.nn.sigmoid(normal(*by_head)),) if strengths else ()
    state = normal(BATCH, HEADS, N, width)
    inputs = *(x.astype(dtype) for x in qkv), *beta, -jnp.exp(normal(*by_head) - 1), state
    return inputs, (normal(*by_head, width), normal(BATCH, HEADS, N, width))


def starts(length: int) -> np.ndarray:
    return np.random.default_rng(1).random((BATCH, length)) < 0.1


def values_and_gradients(op, resets_BL, cotangents, *inputs):
    def run(*inputs):
        *inputs, state = inputs
        return op(*inputs, resets_BL, state)

    values, pull = jax.vjp(run, *inputs)
    return *values, *pull(cotangents)


# Long enough for several spans of the walk; heads that share q and k in several parts; one column
# more, as a normaliser has.
@pytest.mark.parametrize(
    ("length", "groups", "packed", "width"),
    [
        (300, 2, True, P),
        pytest.param(32, 1, False, P, marks=pytest.mark.thorough),
        pytest.param(70, HEADS, True, P + 1, marks=pytest.mark.thorough),
    ],
)
def test_ssd_equals_the_definition(monkeypatch, length, groups, packed, width):
    monkeypatch.setattr(ssd_gpu, "_CHUNK", 16)
    monkeypatch.setattr(ssd_gpu, "_PARTS", 80)
    monkeypatch.setattr(spans, "_LEAST", 4)
    if not packed:  # a state in two programs, as many walks have it
        monkeypatch.setattr(spans, "_WALKS", 8)
        monkeypatch.setattr(spans, "_ROWS", 8)
    inputs, cotangents = operands(length, groups, strengths=False, width=width)
    *inputs, log_decay, state = inputs
    inputs = *inputs, 0.02 * log_decay, state  # so that states outlast a span
    resets_BL = starts(length) if packed else None
    forms = partial(ssd_gpu.ssd, interpret=True), partial(ssd, implementation="reference")
    got, want = (
        jit(partial(values_and_gradients, op, resets_BL, cotangents))(*inputs) for op in forms
    )
    assert_close(got, want)


# In bfloat16, heads of a part that share q and k have gradients of their own kernels.
@pytest.mark.parametrize(
    ("dtype", "groups", "tolerance"), [(jnp.float32, 2, 1e-5), (jnp.bfloat16, 1, 0.005)]
)
def test_ssd_scales_writes_and_skips_as_the_definition(monkeypatch, dtype, groups, tolerance):
    """``strength`` and ``skip``, in the kernels and outside them."""
    monkeypatch.setattr(ssd_gpu, "_CHUNK", 16)
    if groups == 1:
        monkeypatch.setattr(ssd_gpu, "_PARTS", 8)  # two parts of two heads
    inputs, cotangents = operands(40, groups, strengths=True, dtype=dtype)
    q, k, v, strength, log_decay, state = inputs
    resets_BL, skip = starts(40), jnp.arange(1.0, 1 + HEADS)

    def definition(q, k, v, strength, skip, log_decay, resets_BL, state):
        writes = v * strength[..., None]
        y, last = ssd(q, k, writes, log_decay, resets_BL, state, implementation="reference")
        return y + skip[:, None] * v, last

    def kernels(q, k, v, strength, skip, log_decay, resets_BL, state):
        inputs = (q, k, v, log_decay, resets_BL, state, strength, skip)
        return ssd_gpu.ssd(*inputs, interpret=True)

    def chunks(q, k, v, strength, skip, log_decay, resets_BL, state):
        scales = {"strength_BLH": strength, "skip_H": skip}
        return ssd(q, k, v, log_decay, resets_BL, state, **scales, implementation="xla")

    inputs = (q, k, v, strength, skip, log_decay, state)
    forms = (definition, kernels, chunks) if dtype == jnp.float32 else (definition, kernels)
    want, *gots = (
        jit(partial(values_and_gradients, op, resets_BL, cotangents))(*inputs) for op in forms
    )
    for got in gots:
        assert_close(got, want, tolerance)


def test_decays_between_neighbours_are_exact_after_large_sums():
    log_decay = -np.exp(np.random.default_rng(0).normal(size=(1, 64, 2)) + 3).astype(np.float32)
    run_BL = jnp.zeros((1, 64), jnp.int32)
    decays: Any = token_decays(64, True, True, jnp.asarray(log_decay), None, run_BL)
    total, _, to_end, *_ = decays
    whole, rest = np.asarray(total[0, :, 0]), np.asarray(total[0, :, 1])
    wide = log_decay[0].astype(np.float64)
    assert np.cumsum(wide, axis=0).min() < -1000  # in float32, the neighbour of 1000 is 6e-5 off
    gaps = (whole[:, 1:] - whole[:, :-1]) + (rest[:, 1:] - rest[:, :-1])
    np.testing.assert_allclose(gaps, wide[1:].T, rtol=0, atol=4e-6)
    after = np.exp(wide[::-1].cumsum(0)[::-1] - wide).T
    np.testing.assert_allclose(np.asarray(to_end[0]), after, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("length", "packed"), [(77, True), pytest.param(32, False, marks=pytest.mark.thorough)]
)
def test_delta_rule_equals_the_definition(monkeypatch, length, packed):
    monkeypatch.setattr(delta_gpu, "_CHUNK", 16)
    monkeypatch.setattr(delta_gpu, "_GRADIENT_COLUMNS", 16)
    inputs, cotangents = operands(length, HEADS, strengths=True)
    resets_BL = starts(length) if packed else None
    reference = partial(delta_rule, implementation="reference")
    forms = partial(delta_gpu.delta_rule, interpret=True), reference
    got, want = (
        jit(partial(values_and_gradients, op, resets_BL, cotangents))(*inputs) for op in forms
    )
    assert_close(got, want)


@pytest.mark.parametrize(
    ("op", "groups", "kernels"),
    [(ssd_gpu.ssd, HEADS, 9), (ssd_gpu.ssd, 1, 10), (delta_gpu.delta_rule, HEADS, 8)],
)
def test_they_lower_for_cuda(monkeypatch, op, groups, kernels):
    monkeypatch.setattr(ssd_gpu, "_PARTS", 1)
    strengths = op is delta_gpu.delta_rule
    inputs, cotangents = operands(600, groups, strengths=strengths, dtype=jnp.bfloat16)
    run = partial(values_and_gradients, op, starts(600), cotangents)
    assert count_triton_kernels(run, *inputs) == kernels
