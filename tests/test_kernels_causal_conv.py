"""The short causal convolution equals its definition, within documents and across rows."""

import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.causal_conv import causal_conv
from tests.numerics import assert_close

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
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_equals_the_definition(length: int, taps: int):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, length, CHANNELS))
    weight, bias = rng.normal(size=(taps, CHANNELS)), rng.normal(size=CHANNELS)
    past = rng.normal(size=(BATCH, taps - 1, CHANNELS))
    resets_BL = rng.random((BATCH, length)) < 0.4
    resets_BL[:, 0] = [True, False, False]
    got = causal_conv(*map(jnp.asarray, (x, weight, bias, resets_BL, past)))
    assert_close(got, by_loops(x, weight, bias, resets_BL, past), 1e-12)
    got = causal_conv(*map(jnp.asarray, (x, weight, bias)))
    none = np.zeros(resets_BL.shape, bool)
    assert_close(got, by_loops(x, weight, bias, none, np.zeros_like(past)), 1e-12)
