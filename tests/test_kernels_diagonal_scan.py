"""Diagonal recurrences: the step-by-step form is the definition, the two-level scan equals it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.diagonal_scan import s4d_scan, selective_scan
from tests.numerics import assert_close, jit, random_weights, weighted_sum

BATCH, LENGTH, E, N = 2, 77, 5, 3  # with chunks of 4: a whole span of 16 chunks, and a part of one


def starts(packed: bool) -> np.ndarray | None:
    """resets_BL: documents of one to some ten tokens; row 0 continues the one before."""
    if not packed:
        return None
    resets_BL = np.random.default_rng(1).random((BATCH, LENGTH)) < 0.1
    resets_BL[:, 0] = [False, True]
    return resets_BL


def selective_operands(rng: np.random.Generator) -> list[np.ndarray]:
    """u, steps (none, some, and so large that all is forgotten), A, B, C and an initial state."""
    step_BLE = rng.choice([0.0, 0.01, 1.0, 1e4], size=(BATCH, LENGTH, E), p=[0.1, 0.4, 0.4, 0.1])
    return [
        rng.normal(size=(BATCH, LENGTH, E)),
        step_BLE,
        -np.exp(rng.normal(size=(E, N))),
        rng.normal(size=(BATCH, LENGTH, N)),
        rng.normal(size=(BATCH, LENGTH, N)),
        rng.normal(size=(BATCH, E, N)),
    ]


def selective_by_loops(inputs, resets_BL):
    u, step, a, b, c, state = inputs
    state, y = state.copy(), np.zeros(u.shape)
    for row in range(BATCH):
        for t in range(LENGTH):
            decay = np.exp(step[row, t][:, None] * a)
            if resets_BL is not None and resets_BL[row, t]:
                decay = 0.0
            state[row] = decay * state[row] + np.outer(step[row, t] * u[row, t], b[row, t])
            y[row, t] = state[row] @ c[row, t]
    return y, state


def s4d_operands(rng: np.random.Generator) -> list[np.ndarray]:
    """u, complex log decays (slow to fast), C and an initial state."""
    log_decay_EN = -np.exp(rng.uniform(-6, 1, size=(E, N))) + 1j * rng.uniform(-3, 3, size=(E, N))
    complex_shapes = ((E, N), (BATCH, E, N))
    c, state = (rng.normal(size=s) + 1j * rng.normal(size=s) for s in complex_shapes)
    return [rng.normal(size=(BATCH, LENGTH, E)), log_decay_EN, c, state]


def s4d_by_loops(inputs, resets_BL):
    u, log_decay, c, state = inputs
    state, y = state.copy(), np.zeros(u.shape)
    for row in range(BATCH):
        for t in range(LENGTH):
            if resets_BL is not None and resets_BL[row, t]:
                state[row] = 0
            state[row] = np.exp(log_decay) * state[row] + u[row, t][:, None]
            y[row, t] = 2 * (c * state[row]).sum(axis=1).real
    return y, state


SCANS = {
    "selective": (selective_scan, selective_operands, selective_by_loops),
    "s4d": (s4d_scan, s4d_operands, s4d_by_loops),
}
both_scans = pytest.mark.parametrize("name", SCANS)
both_layouts = pytest.mark.parametrize("packed", [True, False], ids=["packed", "one document"])


@pytest.mark.usefixtures("float64")
@both_scans
@both_layouts
def test_reference_is_the_definition(name: str, packed: bool):
    scan, operands, by_loops = SCANS[name]
    inputs, resets_BL = operands(np.random.default_rng(0)), starts(packed)
    values = scan(*inputs[:-1], resets_BL, inputs[-1], implementation="reference")
    assert_close(values, by_loops(inputs, resets_BL), 1e-12)


@both_scans
@both_layouts
def test_two_levels_equal_the_reference_in_values_and_gradients(name: str, packed: bool):
    scan, operands, by_loops = SCANS[name]
    rng, resets_BL = np.random.default_rng(0), starts(packed)
    single = jax.tree.map(jnp.asarray, operands(rng))
    inputs = jax.tree.map(lambda a: np.asarray(a, np.result_type(a.dtype, np.float64)), single)
    weights = random_weights(rng, by_loops(inputs, resets_BL))

    def values_and_gradients(inputs, **how):
        def loss(*inputs):
            values = scan(*inputs[:-1], resets_BL, inputs[-1], **how)
            return weighted_sum(values, weights), values

        gradient = jax.grad(loss, argnums=tuple(range(len(inputs))), has_aux=True)
        return jax.device_get(jit(gradient)(*inputs))

    with jax.enable_x64(True):
        truth = values_and_gradients(inputs, implementation="reference")
    assert_close(values_and_gradients(single, implementation="xla", chunk_size=4), truth)
