"""The Pallas kernels of S4D and S4: equal the definition, and lower for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.diagonal_scan import s4d_gpu, s4d_scan
from hybrid_lm.kernels.s4 import discretise, s4
from hybrid_lm.kernels.s4 import gpu as s4_gpu
from hybrid_lm.kernels.time_invariant import sizes
from hybrid_lm.mixers.s4 import hippo_legs
from tests.lowering import count_triton_kernels
from tests.numerics import assert_close, jit

BATCH, D, N = 3, 2, 5
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


def operands(name: str, length: int, dtype=jnp.float32):
    """u, the parameters of the systems and an initial state; cotangents of outputs and state."""
    rng = np.random.default_rng(length)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def pairs(*shape):
        return jax.lax.complex(normal(*shape), normal(*shape))

    skip_D = normal(D)
    u_BLD, state_BDN = normal(BATCH, length, D).astype(dtype), pairs(BATCH, D, N)
    system = jax.lax.complex(-jnp.exp(normal(D, N) - 2), normal(D, N)), pairs(D, N)
    if name == "s4":
        legs = (jnp.broadcast_to(jnp.asarray(v_N, jnp.complex64), (D, N)) for v_N in hippo_legs(10))
        a_DN, p_DN, b_DN = legs
        system = discretise(a_DN, p_DN, b_DN, pairs(D, N), jnp.asarray([0.01, 0.2]))
    return (u_BLD, system, state_BDN, skip_D), (normal(BATCH, length, D), pairs(BATCH, D, N))


def forms(name: str, *, gelu: bool):
    """The kernels and the definition, as ``run(u_BLD, system, resets_BL, state_BDN, skip_D)``."""

    def definition(u, system, *rest):
        *rest, skip_D = rest
        how = {"skip_D": skip_D, "gelu": gelu, "implementation": "reference"}
        return s4(u, system, *rest, **how) if name == "s4" else s4d_scan(u, *system, *rest, **how)

    return partial(kernels(name), gelu=gelu, interpret=True), definition


def kernels(name: str):
    if name == "s4":
        return s4_gpu.s4
    return lambda u, system, *rest, **how: s4d_gpu.scan(u, *system, *rest, **how)


def values_and_gradients(run, resets_BL, from_zero, inputs, cotangents):
    """With the skip where the row is from zero."""

    def values(u, system, state, skip_D):
        rest = (None, skip_D) if from_zero else (state, None)
        return run(u, system, resets_BL, *rest)

    found, pull = jax.vjp(values, *inputs)
    return *found, *jax.tree.leaves(pull(cotangents))


# From a state: what is left after whole spans. From zero: rows filled up in front.
@pytest.mark.parametrize(
    ("name", "length", "packed", "from_zero", "gelu"),
    [
        ("s4d", 100, True, True, True),
        ("s4", 100, True, True, False),
        pytest.param("s4d", 335, True, False, False, marks=pytest.mark.thorough),
        pytest.param("s4d", 335, True, False, True, marks=pytest.mark.thorough),
        pytest.param("s4d", 7, True, True, False, marks=pytest.mark.thorough),
        pytest.param("s4", 335, True, False, True, marks=pytest.mark.thorough),
        pytest.param("s4", 7, False, False, False, marks=pytest.mark.thorough),
    ],
)
def test_they_equal_the_definition(monkeypatch, name, length, packed, from_zero, gelu):
    monkeypatch.setattr(sizes, "_TILES", (16,))
    monkeypatch.setattr(s4d_gpu, "_CHUNK", 16)
    monkeypatch.setattr(s4_gpu, "_CHUNK", 16)
    inputs, cotangents = operands(name, length)
    resets_BL = np.random.default_rng(1).random((BATCH, length)) < 0.1 if packed else None
    got, want = (
        jit(partial(values_and_gradients, form, resets_BL, from_zero))(inputs, cotangents)
        for form in forms(name, gelu=gelu)
    )
    assert_close(got, want)


@pytest.mark.parametrize("name", ["s4d", pytest.param("s4", marks=pytest.mark.thorough)])
def test_a_broken_row_breaks_no_other(monkeypatch, name):
    monkeypatch.setattr(sizes, "_TILES", (16,))
    (u_BLD, system, _, _), _ = operands(name, 330)
    run = jit(partial(kernels(name), gelu=False, interpret=True))

    def outputs(value):
        y_BLD, last_BDN = run(u_BLD.at[1, 70].set(value), system, None, None, None)
        return np.asarray(y_BLD), np.asarray(last_BDN)

    (y_BLD, last_BDN), (of_nan_BLD, last_of_nan_BDN) = outputs(0.0), outputs(jnp.nan)
    others = [0, 2]
    assert (y_BLD[others] == of_nan_BLD[others]).all()
    assert (last_BDN[others] == last_of_nan_BDN[others]).all()
    assert np.isnan(last_of_nan_BDN[1]).all() and np.isnan(of_nan_BLD[1, 128:]).all()


@pytest.mark.parametrize("name", ["s4d", "s4"])
def test_they_lower_for_cuda(name):
    (u, *inputs), cotangents = operands(name, 1000, jnp.bfloat16)
    y, last = cotangents
    resets_BL = np.zeros((BATCH, 1000), bool)
    run = partial(kernels(name), gelu=True)
    gradients = partial(values_and_gradients, run, resets_BL, True)
    operands_ = (u, *inputs), (y.astype(u.dtype), last)
    assert count_triton_kernels(gradients, *operands_) == 3
