"""Pallas kernels of SSD, the delta rule and GLA on the GPU: float64 truth, odd lengths, repeats."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.delta_rule import delta_rule
from hybrid_lm.kernels.gla import gla
from hybrid_lm.kernels.ssd import gpu as ssd_gpu
from hybrid_lm.kernels.ssd import ssd
from tests.numerics import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

SHAPES = {  # B, L, H, G, N, P, mean of the log of -log decay
    "odd": (2, 1037, 8, 2, 128, 64, -3.0),
    "short": (1, 3, 2, 1, 32, 32, -3.0),
    "many spans": (1, 5000, 4, 1, 64, 128, -6.0),
    "small": (3, 257, 4, 4, 16, 16, -1.0),
    "fast decay": (1, 700, 2, 2, 128, 128, 3.0),
    "many walks": (8, 300, 16, 4, 128, 64, -3.0),
    "wide": (1, 300, 2, 2, 128, 256, -3.0),
}
SSD = [(shape, dtype) for shape in SHAPES for dtype in ("float32", "bfloat16") if shape != "wide"]
SHAPES |= {
    "normalised": (1, 1037, 4, 4, 256, 129, -6.0),
    "many keys": (2, 300, 2, 2, 256, 128, -3.0),
}
SSD += [(shape, "bfloat16") for shape in ("normalised", "many keys")]
BF16 = [(shape, "bfloat16") for shape in ("odd", "short", "many spans", "fast decay", "wide")]


def scaled_ssd(q, k, v, strength, log_decay, resets, state, *, implementation):
    return ssd(
        *(q, k, v, log_decay, resets, state),
        strength_BLH=strength,
        skip_H=strength[0, 0],  # so that its gradient is in that of the strengths
        implementation=implementation,
    )


def operands(op, shape, dtype: str):
    """Inputs (as ``dtype`` can hold q, k and v) and cotangents, in float64."""
    batch, length, heads, groups, n, p, mean = shape
    rng = np.random.default_rng(0)

    def unit(*shape):
        x = rng.normal(size=shape)
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    if op is not ssd:
        groups = heads
    qkv = unit(batch, length, groups, n), unit(batch, length, groups, n)
    qkv = *qkv, rng.normal(size=(batch, length, heads, p))
    qkv = [np.asarray(jnp.asarray(x, dtype), np.float64) for x in qkv]
    by_head = batch, length, heads
    beta = [1 / (1 + np.exp(-rng.normal(size=by_head)))] if op in (delta_rule, scaled_ssd) else []
    decaying = (*by_head, n) if op is gla else by_head
    log_decay = -np.exp(rng.normal(size=decaying) + mean)
    state = rng.normal(size=(batch, heads, n, p))
    cotangents = rng.normal(size=(*by_head, p)), rng.normal(size=state.shape)
    wides = [np.float32(x).astype(np.float64) for x in (*beta, log_decay, state)]
    return [*qkv, *wides], cotangents


def check(op, shape: str, dtype: str, packed: bool):
    inputs, cotangents = operands(op, SHAPES[shape], dtype)
    resets_BL = np.random.default_rng(1).random(inputs[0].shape[:2]) < 0.01 if packed else None

    def gradients(implementation, inputs, cotangents):
        def run(*inputs):
            *inputs, state = inputs
            return op(*inputs, resets_BL, state, implementation=implementation)

        values, pull = jax.vjp(run, *inputs)
        return *values, *pull(cotangents)

    # Step by step in float64: faster on the host than on a GPU.
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = [[jnp.asarray(x, jnp.float64) for x in xs] for xs in (inputs, cotangents)]
        want = jax.jit(partial(gradients, "reference"))(wide[0], tuple(wide[1]))
        want = [np.asarray(x) for x in want]
    narrow = [jnp.asarray(x, dtype) for x in inputs[:3]]
    narrow += [jnp.asarray(x, jnp.float32) for x in inputs[3:]]
    cotangents = tuple(jnp.asarray(x, jnp.float32) for x in cotangents)
    run = jax.jit(partial(gradients, "pallas"))
    first = run(narrow, cotangents)
    got = [np.asarray(x.astype(jnp.float32), np.float64) for x in first]
    assert_close(got, want, 0.005 if dtype == "bfloat16" else 1e-5)
    for _ in range(20):
        again = run(narrow, cotangents)
        assert all(bool((x == y).all()) for x, y in zip(first, again, strict=True))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), SSD)
def test_ssd_matches_float64(shape, dtype, packed):
    check(ssd, shape, dtype, packed)


@pytest.mark.parametrize("parts", [1, 70])
def test_ssd_of_heads_in_few_parts_matches_float64(monkeypatch, parts):
    """One program for all heads that share q and k, or for half of them, as in large batches."""
    monkeypatch.setattr(ssd_gpu, "_PARTS", parts)
    check(ssd, "odd", "bfloat16", packed=True)


@pytest.mark.parametrize("op", [delta_rule, gla], ids=["delta_rule", "gla"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("shape", "dtype"), BF16)
def test_those_of_bf16_match_float64(op, shape, dtype, packed):
    check(op, shape, dtype, packed)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", ["odd", "short", "fast decay"])
def test_ssd_with_strengths_and_skip_matches_float64(shape, dtype):
    check(scaled_ssd, shape, dtype, packed=True)
