"""The short causal convolution equals its definition, within documents and across rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.causal_conv import causal_conv, gpu
from tests.lowering import count_triton_kernels
from tests.numerics import assert_close, jit

BATCH, CHANNELS = 3, 2


def by_loops(x, weight, bias, resets_BL, past):
    """Outputs and the inputs that the next row needs, written down in plain loops."""
    taps, length = len(weight), x.shape[1]
    padded = np.concatenate([past, x], axis=1)
    y = np.zeros(x.shape)
    for b in range(BATCH):
        for t in range(length):
            if resets_BL[b, t]:
                padded[b, : taps - 1 + t] = 0
            y[b, t] = bias + (weight * padded[b, t : t + taps]).sum(axis=0)
    return y, padded[:, length:]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "implementation", ["xla", pytest.param("reference", marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_equals_the_definition(length: int, taps: int, implementation: str):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, length, CHANNELS))
    weight, bias = rng.normal(size=(taps, CHANNELS)), rng.normal(size=CHANNELS)
    past = rng.normal(size=(BATCH, taps - 1, CHANNELS))
    resets_BL = rng.random((BATCH, length)) < 0.4
    resets_BL[:, 0] = [True, False, False]
    conv = partial(causal_conv, implementation=implementation)
    got = jit(conv)(*map(jnp.asarray, (x, weight, bias, resets_BL, past)))
    assert_close(got, by_loops(x, weight, bias, resets_BL, past), 1e-12)
    got = jit(partial(conv, silu=True))(*map(jnp.asarray, (x, weight)))
    none = np.zeros(resets_BL.shape, bool)
    want, last = by_loops(x, weight, 0.0, none, np.zeros_like(past))
    assert_close(got, (want / (1 + np.exp(-want)), last), 1e-12)


def operands(length: int, channels: int, taps: int, dtype=jnp.float32):
    """x, weight, bias and past; cotangents of the outputs and of the last inputs."""
    rng = np.random.default_rng(length)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    past = (BATCH, taps - 1, channels)
    rows = (BATCH, length, channels)
    inputs = normal(*rows), normal(taps, channels), normal(channels), normal(*past)
    return inputs, (normal(*rows), normal(*past))


def values_and_gradients(conv, resets_BL, silu, inputs, cotangents):
    def run(x, weight, bias, past):
        return conv(x, weight, bias, resets_BL, past, silu=silu)

    values, pull = jax.vjp(run, *inputs)
    return *values, *pull(cotangents)


# Rows that end in a chunk, and with it.
@pytest.mark.parametrize(
    ("length", "taps", "silu", "packed"),
    [
        (9, 3, True, True),
        pytest.param(9, 4, True, True, marks=pytest.mark.thorough),
        pytest.param(8, 3, False, False, marks=pytest.mark.thorough),
        pytest.param(4, 2, True, True, marks=pytest.mark.thorough),
        pytest.param(4, 4, True, False, marks=pytest.mark.thorough),
    ],
)
def test_pallas_equals_the_definition(monkeypatch, length, taps, silu, packed):
    monkeypatch.setattr(gpu, "_CHANNELS", 16)
    rows = 2 if taps <= 3 else 4
    monkeypatch.setattr(gpu, "_ROWS", rows)
    monkeypatch.setattr(gpu, "_TOKENS", (rows, 2 * rows))
    inputs, cotangents = operands(length, 24, taps)
    # A document starts at every place of some row; in one row all tokens of some groups see all.
    place_L = jnp.arange(length)
    starts_BL = jnp.stack([place_L == length // 2, place_L % 2 == 0, place_L % 2 == 1])
    resets_BL = starts_BL if packed else None
    reference = partial(causal_conv, implementation="reference")
    got, want = (
        jit(partial(values_and_gradients, conv, resets_BL, silu))(inputs, cotangents)
        for conv in (partial(gpu.causal_conv, interpret=True), reference)
    )
    assert_close(got, want, 1e-6)


def in_parts(conv):
    """``conv`` of inputs with 3 channels behind, and with outputs in two parts, as one array."""

    def run(x, *operands, **options):
        wider = jnp.concatenate([x, x[..., :3]], axis=-1)
        ys, past = conv(wider, *operands, parts=(16, 32), **options)
        return jnp.concatenate(ys, axis=-1), past

    return run


def test_outputs_in_parts_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(gpu, "_CHANNELS", 16)
    monkeypatch.setattr(gpu, "_TOKENS", (8,))
    inputs, cotangents = operands(9, 48, 2)
    resets_BL = jnp.eye(BATCH, 9, dtype=bool)
    got, want = (
        jit(partial(values_and_gradients, conv, resets_BL, True))(inputs, cotangents)
        for conv in (in_parts(partial(gpu.causal_conv, interpret=True)), in_parts(causal_conv))
    )
    assert_close(got, want, 1e-6)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_pallas_lowers_for_cuda(monkeypatch):
    inputs, cotangents = operands(200, 300, 4, jnp.bfloat16)
    run = partial(values_and_gradients, gpu.causal_conv, np.eye(BATCH, 200, dtype=bool), True)
    assert count_triton_kernels(run, inputs, cotangents) == 2
    monkeypatch.setattr(gpu, "_CHANNELS", 16)
    inputs, cotangents = operands(200, 48, 4, jnp.bfloat16)
    run = partial(values_and_gradients, in_parts(gpu.causal_conv), None, True)
    assert count_triton_kernels(run, inputs, cotangents) == 2
