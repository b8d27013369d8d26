"""The Pallas causal convolution on the GPU: float64 truth, odd lengths, every place, repeats."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.causal_conv import causal_conv, gpu
from tests.numerics import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

CASES = {  # B, L, E, W, silu
    "odd": (2, 1037, 300, 4, True),
    "no silu": (2, 259, 1280, 3, False),
    "two taps": (1, 513, 77, 2, True),
    "as short as the taps": (3, 4, 64, 4, True),
    "whole chunks": (1, 2048, 512, 4, True),
    "in parts": (2, 515, 512, 4, True),
    "many tokens a program": (2, 1501, 300, 4, True),
}
PARTS = {"in parts": (256, 128, 128)}


def truth(x, weight, bias, past, dy, dlast, resets_BL, silu):
    """Values and gradients in float64, written down with numpy."""
    width, length = len(weight), x.shape[1]
    padded = np.concatenate([past, x], axis=1)
    document = np.pad(np.cumsum(resets_BL, axis=1), ((0, 0), (width - 1, 0)))
    shifts = [slice(width - 1 - back, width - 1 - back + length) for back in range(width)]
    inputs = [
        np.where((document[:, s] == document[:, width - 1 :])[..., None], padded[:, s], 0)
        for s in shifts
    ]
    p = bias + sum(weight[-1 - back] * inputs[back] for back in range(width))
    sigmoid = 1 / (1 + np.exp(-p))
    dp = dy * sigmoid * (1 + p * (1 - sigmoid)) if silu else dy
    dpadded = np.zeros(padded.shape)
    for back, shift in enumerate(shifts):
        seen = document[:, shift] == document[:, width - 1 :]
        dpadded[:, shift] += np.where(seen[..., None], weight[-1 - back] * dp, 0)
    dweight = np.stack([(dp * inputs[back]).sum((0, 1)) for back in reversed(range(width))])
    kept = (document[:, length:] == document[:, -1:])[..., None]
    dpadded[:, length:] += kept * dlast
    values = (p * sigmoid if silu else p), kept * padded[:, length:]
    return *values, dpadded[:, width - 1 :], dweight, dp.sum((0, 1)), dpadded[:, : width - 1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_match_float64(monkeypatch, case, packed, dtype):
    if case == "many tokens a program":  # else only much larger inputs take so many
        monkeypatch.setattr(gpu, "_TOKENS", (64, 320))
        monkeypatch.setattr(gpu, "_PROGRAMS", 1)
    batch, length, inner, width, silu = CASES[case]
    rng = np.random.default_rng(0)

    def normal(*shape, dtype="float32"):
        return np.asarray(jnp.asarray(rng.normal(size=shape), dtype), np.float64)

    rows, past = (batch, length, inner), (batch, width - 1, inner)
    parameters = normal(width, inner), normal(inner)
    operands = (normal(*rows, dtype=dtype), *parameters, normal(*past, dtype=dtype))
    cotangents = normal(*rows, dtype=dtype), normal(*past, dtype=dtype)
    # Documents start at every distance from the edges of chunks, and of each other.
    resets_BL = rng.random((batch, length)) < 0.3 if packed else None
    none = np.zeros((batch, length), bool)
    want = truth(*operands, *cotangents, none if resets_BL is None else resets_BL, silu)

    @jax.jit
    def run(operands, cotangents):
        def conv(x, weight, bias, past):
            options = {"silu": silu, "implementation": "pallas", "parts": PARTS.get(case)}
            if case not in PARTS:
                return causal_conv(x, weight, bias, resets_BL, past, **options)
            wider = jnp.concatenate([x, x[..., :16]], axis=-1)
            y, last = causal_conv(wider, weight, bias, resets_BL, past, **options)
            return jnp.concatenate(y, axis=-1), last

        values, pull = jax.vjp(conv, *operands)
        return *values, *pull(cotangents)

    asarray = partial(jnp.asarray, dtype=dtype)
    x, weight, bias, past = operands
    narrow = (asarray(x), jnp.float32(weight), jnp.float32(bias), asarray(past))
    first = run(narrow, tuple(map(asarray, cotangents)))
    got = [np.asarray(value.astype(jnp.float32), np.float64) for value in first]
    assert_close(got, list(want), 0.005 if dtype == "bfloat16" else 1e-5)
    for _ in range(20):
        again = run(narrow, tuple(map(asarray, cotangents)))
        assert all(bool((a == b).all()) for a, b in zip(first, again, strict=True))
