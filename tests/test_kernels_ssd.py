"""State-space duality: the step-by-step form is the definition, the chunked form equals it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.ssd import ssd
from tests.numerics import assert_close, jit, random_weights, weighted_sum

BATCH, LENGTH, HEADS, GROUPS, N, P = 2, 37, 4, 2, 8, 6


def operands(dtype: str, decays: str) -> tuple[np.ndarray | None, ...]:
    """q, k, v (as ``dtype`` can hold them), log decays and an initial state, in float64."""
    rng = np.random.default_rng(0)

    def rounded(*shape):
        return np.asarray(jnp.asarray(rng.normal(size=shape), dtype), np.float64)

    shape = (BATCH, LENGTH, HEADS)
    log_decay_BLH = {
        "none": None,
        "mild": -np.exp(rng.normal(size=shape)),
        # No decay, some decay, and all is forgotten, token by token.
        "wild": -rng.choice([0.0, 0.1, 1e5], size=shape, p=[0.3, 0.6, 0.1]),
    }[decays]
    qkv = rounded(*shape[:2], GROUPS, N), rounded(*shape[:2], GROUPS, N), rounded(*shape, P)
    state_BHNP = rng.normal(size=(BATCH, HEADS, N, P))
    if log_decay_BLH is not None:
        log_decay_BLH = np.float32(log_decay_BLH).astype(np.float64)
    return *qkv, log_decay_BLH, np.float32(state_BHNP).astype(np.float64)


def starts(packed: bool) -> np.ndarray | None:
    """resets_BL: documents of one to some ten tokens; row 0 continues the one before."""
    if not packed:
        return None
    resets_BL = np.random.default_rng(1).random((BATCH, LENGTH)) < 0.2
    resets_BL[:, 0] = [False, True]
    return resets_BL


def values_and_gradients(inputs, resets_BL, weights, dtype, **how):
    """Outputs, last state and the gradients of all inputs."""
    q, k, v, log_decay, state = inputs
    wide = jnp.promote_types(dtype, jnp.float32)
    halves = [jnp.asarray(a, dtype) for a in (q, k, v)]
    wides = [jnp.asarray(a, wide) for a in (log_decay, state) if a is not None]

    def loss(halves, wides):
        *log_decay, state = wides
        values = ssd(*halves, *(log_decay or [None]), resets_BL, state, **how)
        return weighted_sum(values, weights), values

    gradients, values = jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(halves, wides)
    return jax.device_get((values, gradients))


def by_loops(inputs, resets_BL):
    """Outputs and last state, written down in plain loops."""
    q, k, v, log_decay, state = inputs
    state, y = state.copy(), np.zeros(v.shape)
    for b in range(BATCH):
        for t in range(LENGTH):
            for h in range(HEADS):
                g = h // (HEADS // GROUPS)
                decay = 1.0 if log_decay is None else np.exp(log_decay[b, t, h])
                if resets_BL is not None and resets_BL[b, t]:
                    decay = 0.0
                state[b, h] = decay * state[b, h] + np.outer(k[b, t, g], v[b, t, h])
                y[b, t, h] = state[b, h].T @ q[b, t, g]
    return y, state


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "one document"])
@pytest.mark.parametrize("decays", ["none", "mild", "wild"])
def test_reference_is_the_definition(decays: str, packed: bool):
    inputs, resets_BL = operands("float32", decays), starts(packed)
    values = ssd(*inputs[:4], resets_BL, inputs[4], implementation="reference")
    assert_close(values, by_loops(inputs, resets_BL), 1e-12)


@pytest.mark.parametrize(("decays", "packed"), [("none", True), ("mild", False), ("wild", True)])
def test_chunks_equal_the_reference_in_values_and_gradients(decays: str, packed: bool):
    resets_BL = starts(packed)
    values = by_loops(operands("float32", decays), resets_BL)
    weights = random_weights(np.random.default_rng(2), values)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.005)):
        form = partial(values_and_gradients, operands(dtype, decays), resets_BL, weights)
        with jax.enable_x64(True):
            truth = form("float64", implementation="reference")
        assert_close(form(dtype, implementation="xla", chunk_size=8), truth, tolerance)
