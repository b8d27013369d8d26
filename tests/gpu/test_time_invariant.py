"""The Pallas kernels of S4D and S4 on the GPU: float64 truth, odd lengths, extreme decays,
repeats.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.diagonal_scan import s4d_scan
from hybrid_lm.kernels.s4 import discretise, s4
from hybrid_lm.mixers.s4 import hippo_legs
from tests.numerics import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

SHAPES = {  # B, L, D, pairs of states, mean of the log of the step
    "odd": (2, 1037, 48, 32, -4.0),
    "short": (1, 3, 8, 16, -4.0),
    "many spans": (1, 5000, 16, 8, -4.0),
    "small state": (3, 257, 40, 3, -4.0),
    "large batch": (70, 150, 8, 16, -3.0),
    "fast decay": (1, 700, 8, 32, -1.0),
}


def operands(shape, dtype: str, name: str, size: float = 1.0):
    """u, parameters, skip, initial state; cotangents. As in float32; what is of tokens, rounded.

    ``size``: of c.
    """
    batch, length, width, pairs, mean = shape
    rng = np.random.default_rng(0)

    def normal(*shape):
        return np.float32(rng.normal(size=shape))

    def paired(*shape):
        return normal(*shape) + 1j * normal(*shape)

    def tokens():
        return np.asarray(jnp.asarray(normal(batch, length, width), dtype).astype(jnp.float32))

    u_BLD = tokens()
    step_D = np.asarray(np.exp(normal(width) + mean), np.float32)
    a_N, p_N, b_N = (np.complex64(v_N) for v_N in hippo_legs(2 * pairs))
    c_DN, state_BDN = np.complex64(size) * paired(width, pairs), paired(batch, width, pairs)
    if name == "s4":
        vectors = (np.broadcast_to(v_N, (width, pairs)) for v_N in (a_N, p_N, b_N))
        parameters = (*vectors, c_DN, step_D)
    else:  # frequencies of a token that float32 can tell apart
        log_decay_DN = step_D[:, None] * (-1 + 1j * np.linspace(0, 10, pairs, dtype=np.float32))
        parameters = np.complex64(log_decay_DN), c_DN
    cotangents = tokens(), paired(batch, width, pairs)
    return (u_BLD, *parameters, normal(width), state_BDN), cotangents


def run(name, implementation, resets_BL, finished, u_BLD, *rest):
    *parameters, skip_D, state_BDN = rest
    how: Any = {"skip_D": skip_D, "gelu": True} if finished else {}
    how["implementation"] = implementation
    if name == "s4":
        a_DN, p_DN, b_DN, c_DN, step_D = parameters
        system = discretise(a_DN, p_DN, b_DN, c_DN, step_D)
        return s4(u_BLD, system, resets_BL, state_BDN, **how)
    log_decay_DN, c_DN = parameters
    return s4d_scan(u_BLD, log_decay_DN, c_DN, resets_BL, state_BDN, **how)


def check(name, shape, dtype, packed, from_state, finished=False):
    """``finished``: with a skip and GELU."""
    # Outputs of the size of 1: the slope of GELU at large ones is 0, 1 or an error of the sum.
    size = {"s4d": 1 / 64, "s4": 1 / 4}[name] if finished else 1.0
    inputs, cotangents = operands(SHAPES[shape], dtype, name, size)
    resets_BL = np.random.default_rng(1).random(inputs[0].shape[:2]) < 0.01 if packed else None

    def gradients(implementation, inputs, cotangents):
        *inputs, state = inputs

        def values(*inputs):
            if not from_state:
                inputs = *inputs[:-1], None
            return run(name, implementation, resets_BL, finished, *inputs)

        found, pull = jax.vjp(values, *inputs, state)
        dy_BLD, dlast_BDN = cotangents
        return *found, *pull((dy_BLD.astype(found[0].dtype), dlast_BDN))

    def wide(x):
        return jnp.asarray(x, jnp.complex128 if np.iscomplexobj(x) else jnp.float64)

    with jax.enable_x64(True):
        operands_ = jax.tree.map(wide, (inputs, cotangents))
        want = jax.jit(partial(gradients, "reference"))(*operands_)
        want = [np.asarray(x) for x in want]
    narrow = jax.tree.map(jnp.asarray, (inputs, cotangents))
    narrow = (narrow[0][0].astype(dtype), *narrow[0][1:]), narrow[1]
    kernels = jax.jit(partial(gradients, "pallas"))
    first = kernels(*narrow)
    got = [np.asarray(x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x) for x in first]
    assert_close(got, want, 0.005 if dtype == "bfloat16" else 1e-5)
    for _ in range(20):
        again = kernels(*narrow)
        assert all(bool((x == y).all()) for x, y in zip(first, again, strict=True))


FORMS = [("s4d", "float32"), ("s4d", "bfloat16"), ("s4", "bfloat16")]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("name", "dtype"), FORMS)
def test_packed_rows_from_a_state_match_float64(name, dtype, shape):
    check(name, shape, dtype, packed=True, from_state=True)


@pytest.mark.parametrize("shape", ["odd", "short"])
@pytest.mark.parametrize(("name", "dtype"), FORMS)
def test_single_documents_from_zero_match_float64(name, dtype, shape):
    check(name, shape, dtype, packed=False, from_state=False)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("name", "dtype"), FORMS)
def test_with_skip_and_gelu_they_match_float64(name, dtype, packed):
    check(name, "odd", dtype, packed=packed, from_state=packed, finished=True)
